"""Which plans allow a card to replay a decode pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.planning.planner import place
from core.spec import Budget, Hardware
from core.units import GIB
from tests.core.machines import DESKTOP, model

ABLE = replace(DESKTOP, gpus=tuple(replace(gpu, graphs=True) for gpu in DESKTOP.gpus))
SMALL = Budget(format="int4", context=2048)


def test_a_model_that_lies_on_the_card_is_captured() -> None:
    assert place(model("llama-3.2-1b"), ABLE, SMALL).captured


@pytest.mark.parametrize(
    ("name", "machine", "budget"),
    [
        ("llama-3.2-1b", DESKTOP, SMALL),
        ("llama-3.2-1b", ABLE, replace(SMALL, vram=GIB // 2)),
        ("llama-3.2-1b", ABLE, replace(SMALL, kv="int8")),
        ("olmoe-1b-7b", ABLE, SMALL),
        ("llama-3.1-8b", ABLE, replace(SMALL, format="bf16")),
    ],
    ids=["a card that cannot", "in part", "packed states", "experts", "too large"],
)
def test_others_are_not(name: str, machine: Hardware, budget: Budget) -> None:
    assert not place(model(name), machine, budget).captured


def test_nor_is_what_is_only_compared_with() -> None:
    assert not place(model("llama-3.2-1b"), ABLE, SMALL, "serial").captured
