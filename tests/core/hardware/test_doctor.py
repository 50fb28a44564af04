import json
from dataclasses import replace
from typing import Any

import pytest

from core.graphics.card import GraphicsCard
from core.hardware.doctor import Software, describe_machine, findings, software
from core.spec import Hardware
from core.units import GIB
from tests.core.machines import A10, DESKTOP, LAPTOP, simulated

INSTALLED = Software("Linux", "3.11", "2.13+cu130", "13.0", "580.1", ("avx2",))
ARC = GraphicsCard("Intel", "Intel Arc B580", "Battlemage", "32.0.101.8509")
OLD_DRIVER = GraphicsCard("NVIDIA", "RTX", "8.9", "470.1")
NO_CARD = replace(INSTALLED, driver="", cuda="", torch="2.13+cpu")


@pytest.mark.parametrize(
    ("hardware", "installed"),
    [(LAPTOP, NO_CARD), (A10, INSTALLED), (DESKTOP, INSTALLED), (simulated(GIB, 1e9), NO_CARD)],
)
def test_sound_machines_have_nothing_to_fix(
    hardware: Hardware, installed: Software, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.hardware.doctor.on_battery", lambda: False)
    assert findings(hardware, installed) == []


def link(**changes: Any) -> Hardware:
    card = DESKTOP.gpus[0]
    return replace(DESKTOP, gpus=(replace(card, link=replace(card.link, **changes)),))


@pytest.mark.parametrize(
    ("hardware", "installed", "word"),
    [
        (LAPTOP, replace(NO_CARD, cards=(ARC,)), "There is an Intel Arc B580 (driver 32.0.101.8509), but"),
        (LAPTOP, replace(INSTALLED, cards=(ARC,)), "(2.13+cu130) cannot use it"),
        (LAPTOP, replace(NO_CARD, cards=(GraphicsCard("Intel", "Arc"),)), "The Arc has no driver for computing."),
        (LAPTOP, replace(NO_CARD, cards=(OLD_DRIVER,)), "driver 470.1 of the RTX is too old"),
        (LAPTOP, replace(NO_CARD, cards=(GraphicsCard("Intel", "UHD", "", "1"),)), "The UHD is not supported"),
        (replace(DESKTOP, gpus=(replace(DESKTOP.gpus[0], vram_free=GIB),)), INSTALLED, "Other programs hold"),
        (link(h2d_pinned=1e9), INSTALLED, "only 1.0 GB"),
        (link(h2d_pinned=5e9, h2d_pageable=1e9), INSTALLED, "which is little"),
        (link(h2d_pinned=7e9, h2d_pageable=7e9), INSTALLED, "Locked memory"),
        (link(h2d_pinned=7e9, h2d_pageable=7e9, lockable=False), INSTALLED, "too little memory be locked"),
        (replace(LAPTOP, cpu=replace(LAPTOP.cpu, ram_free=GIB)), NO_CARD, "of memory are free"),
        (LAPTOP, replace(NO_CARD, compiled_kernels=()), "compiled kernels"),
        (replace(LAPTOP, measured=False), NO_CARD, "never measured"),
    ],
)
def test_what_holds_a_machine_back_is_said_with_what_to_do(hardware: Hardware, installed: Software, word: str) -> None:
    found = [finding for finding in findings(hardware, installed) if word in finding.what]
    assert len(found) == 1
    assert found[0].how.endswith(".")


def test_a_battery_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.doctor.on_battery", lambda: True)
    assert any("charger" in finding.how for finding in findings(LAPTOP, NO_CARD))


def test_the_description_is_json() -> None:
    told = json.loads(json.dumps(describe_machine(A10, INSTALLED)))
    assert told["gpus"][0]["name"] == "A10"
    assert told["gpus"][0]["link"]["h2d_pinned"] == 30e9
    assert told["kernels"][0]["flops"].keys() == {"1", "2-16", "17-64", ">64"}
    assert told["ram_total"] == 128 * GIB
    assert told["cards"] == []
    for untried in (
        "NVIDIA, AMD, Intel and Apple",
        "came from a server made for tests only",
        "CUDA graphs",
        "paired exchange",
    ):
        assert any(untried in said for said in told["untried"])


def test_this_machines_software_is_named() -> None:
    found = software()
    assert found.torch.startswith("2.")
    assert found.system
