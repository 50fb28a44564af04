"""Which plans allow a card to replay a decode pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.planning.capture import is_whole, runs_of
from core.planning.planner import place
from core.spec import Budget, Hardware
from core.units import GIB
from tests.core.machines import DESKTOP, model

ABLE = replace(DESKTOP, gpus=tuple(replace(gpu, graphs=True) for gpu in DESKTOP.gpus))
SMALL = Budget(format="int4", context=2048)


def test_a_model_that_lies_on_the_card_is_captured() -> None:
    plan = place(model("llama-3.2-1b"), ABLE, SMALL)
    assert plan.captured == tuple(range(16))
    assert is_whole(plan)


@pytest.mark.parametrize(("name", "vram"), [("llama-3.2-1b", GIB // 2), ("llama-3.1-8b", 4 * GIB)])
def test_so_are_the_layers_of_others_that_do(name: str, vram: int) -> None:
    spec = model(name)
    plan = place(spec, ABLE, replace(SMALL, vram=vram))
    assert 0 < len(plan.captured) < spec.layers
    assert not is_whole(plan)
    for linear, one in zip(spec.linears, plan.linears, strict=True):
        if linear.layer in plan.captured:
            assert one.resident == one.rows
            assert plan.kv_devices[linear.layer] == 0


def test_runs_are_as_long_as_possible_and_few() -> None:
    assert runs_of((0, 1, 4, 5, 6, 9)) == [(4, 5, 6), (0, 1), (9,)]
    assert len(runs_of(range(0, 40, 2))) == 4
    assert runs_of(()) == []


@pytest.mark.parametrize(
    ("name", "machine", "budget"),
    [
        ("llama-3.2-1b", DESKTOP, SMALL),
        ("llama-3.2-1b", ABLE, replace(SMALL, kv="int8")),
        ("olmoe-1b-7b", ABLE, SMALL),
    ],
    ids=["a card that cannot", "packed states", "experts"],
)
def test_others_are_not(name: str, machine: Hardware, budget: Budget) -> None:
    assert not place(model(name), machine, budget).captured


def test_nor_is_what_is_only_compared_with() -> None:
    assert not place(model("llama-3.2-1b"), ABLE, SMALL, "serial").captured
