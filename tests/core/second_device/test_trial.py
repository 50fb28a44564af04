"""A card is tried in real processes, whose driver really crashes or hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.accelerators import trial as module
from core.accelerators.trial import Step, Trial, tried
from core.hardware import profile
from core.hardware.doctor import describe_machine, findings, software
from core.hardware.machine import Machine
from core.hardware.profile import measured_machine
from core.kernels.autotune import KernelTable
from core.spec import Abilities, Attempt
from tests.core.second_device import ABLE, SecondCard, SecondDevice
from tests.core.second_device.tried_there import FAULTS

EIGHT, FOUR, GRAPHS = "torch's 8-bit products", "torch's 4-bit products", "graphs"
Try = Callable[..., Trial]


@pytest.fixture
def begun(second: SecondDevice, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Make `tried` run processes that have the tests' device as their card; provide these processes."""

    def command(_: str, __: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.core.second_device.tried_there", *arguments]

    found: list[subprocess.Popen[bytes]] = []
    own = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(own(*arguments, **options))
        monkeypatch.setattr(module, "LIMIT_S", 120.0)
        return found[-1]

    monkeypatch.setattr(module, "command", command)
    monkeypatch.setattr("core.accelerators.trial.subprocess.Popen", popen)
    return found


@pytest.fixture
def with_faults(begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> Try:
    def run(**faults: str) -> Trial:
        names = {"eight": EIGHT, "four": FOUR}
        monkeypatch.setenv(FAULTS, json.dumps({names.get(name, name): fault for name, fault in faults.items()}))
        return tried(0)

    return run


def works(trial: Trial) -> dict[str, bool]:
    return {one.name: one.works for one in trial.abilities.attempts}


def why(trial: Trial, name: str) -> str:
    return next(one.why for one in trial.abilities.attempts if one.name == name)


def test_a_crash_costs_what_was_tried_and_nothing_else(with_faults: Try, begun: list[subprocess.Popen[bytes]]) -> None:
    trial = with_faults(eight="segfault", graphs="last words")
    assert (trial.why, trial.name, trial.kind) == ("", "Second device", "second")
    assert works(trial) == {EIGHT: False, FOUR: False, GRAPHS: False}
    assert why(trial, EIGHT) == "The driver ended the program that tried it (exit code SIGSEGV)."
    assert why(trial, GRAPHS).endswith("(exit code SIGABRT): GPU: page not present")
    assert why(trial, FOUR) == ""
    assert trial.abilities.products == ()
    assert not trial.graphs
    assert min(trial.up_bytes_s, trial.down_bytes_s) > 0
    assert len(begun) == 3


def test_a_hang_is_ended_and_a_lost_card_is_not_blamed_on_the_next_step(
    with_faults: Try, begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = module.parse_line

    def hurried(line: bytes) -> Trial | Step | None:
        said = parse(line)
        monkeypatch.setattr(module, "LIMIT_S", 1.0 if said == Step(FOUR, needed=False) else 120.0)
        return said

    monkeypatch.setattr(module, "parse_line", hurried)
    trial = with_faults(four="hang", eight="lost")
    assert trial.why == ""
    assert works(trial) == {GRAPHS: trial.graphs, EIGHT: False, FOUR: False}
    assert "DeviceLost: " in why(trial, EIGHT)
    assert why(trial, FOUR) == "It did not answer within 1 seconds when it was tried."
    assert why(trial, GRAPHS) == ""
    assert len(begun) == 3
    assert begun[1].returncode == -signal.SIGKILL


@pytest.mark.parametrize(("step", "fault"), [("copies", "segfault"), ("memory", "lost")])
def test_without_what_is_needed_the_card_is_not_used(
    with_faults: Try, begun: list[subprocess.Popen[bytes]], step: str, fault: str
) -> None:
    trial = with_faults(**{step: fault, "graphs": "segfault"})
    assert trial.why
    assert len(begun) == 1


def test_what_failed_is_remembered_and_told(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Attempt(GRAPHS, False, "The driver ended the program that tried it.")
    abilities = Abilities(products=ABLE.products, attempts=(Attempt(EIGHT, True), failed))
    opened = list[Abilities]()
    monkeypatch.setattr("core.hardware.benchmark.STORAGES", ("bf16",))
    monkeypatch.setattr(profile, "TOO_BUSY", 2.0)
    monkeypatch.setattr("core.accelerators.trial.tried", lambda index: Trial("", abilities=abilities))
    monkeypatch.setattr(
        "core.accelerators.factory.Card", lambda _, known: opened.append(known) or SecondCard(second, known)
    )
    first = measured_machine(tmp_path, threads=1)[0]
    assert abilities in opened, "it is measured with what its trial found"
    monkeypatch.setattr(profile, "measured_profile", None)  # would fail if called
    hardware = measured_machine(tmp_path, threads=1)[0]
    assert hardware.gpus[0].abilities == first.gpus[0].abilities == abilities
    Machine(hardware, KernelTable(1), None, {}).accelerator(0)
    assert opened[-1] == abilities
    assert describe_machine(hardware, software())["gpus"][0]["tried"][1]["why"] == failed.why
    assert any(f"is used without graphs. {failed.why}" in one.what for one in findings(hardware, software()))
