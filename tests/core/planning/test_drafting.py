"""A draft model lies where it gains most: on the card, or in RAM where the card's memory is worth more to the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.planning.drafting import Drafting, plan_drafting
from core.planning.planner import place
from core.spec import Budget, Hardware, ModelSpec, Strategy
from core.units import GIB
from tests.core import machines
from tests.core.machines import DESKTOP, simulated

BF16 = Budget(format="bf16", context=2048)
SLOW_LINK = simulated(2 * GIB, 1e9)


def planned(
    spec: ModelSpec, machine: Hardware, budget: Budget = BF16, *, strategy: Strategy = "stream", shares: bool = True
) -> Drafting:
    alone = place(spec, machine, budget, strategy)
    found = plan_drafting(spec, spec, alone, machine, budget, shares_cache=shares)
    assert found is not None
    assert found.target.gpu == 0
    return found


def test_beside_a_slow_link_the_copy_lies_in_ram() -> None:
    spec = machines.model("llama-3.2-1b")
    found = planned(spec, SLOW_LINK)
    assert found.draft.gpu == -1
    assert found.gain > 2
    alone = place(spec, SLOW_LINK, BF16, "stream")
    assert found.target.memory[-1].used == alone.memory[-1].used, "the model keeps the whole card"


def test_beside_a_fast_card_the_copy_lies_there() -> None:
    found = planned(machines.model("llama-3.1-8b"), DESKTOP)
    assert found.draft.gpu == 0


@pytest.mark.parametrize("windows", [0, 512])
def test_a_copy_in_ram_needs_a_cache_that_can_be_copied_there(windows: int) -> None:
    spec = machines.model("llama-3.2-1b")
    layers = tuple(replace(layer, window=windows) for layer in spec.kv_layers)
    assert planned(replace(spec, kv_layers=layers), SLOW_LINK).draft.gpu == (0 if windows else -1)
    assert planned(spec, SLOW_LINK, replace(BF16, kv="int8")).draft.gpu == 0


def test_another_model_stays_beside_the_target() -> None:
    assert planned(machines.model("llama-3.2-1b"), SLOW_LINK, shares=False).draft.gpu == 0


def test_ram_for_a_copy_of_the_cache_is_counted_if_the_card_holds_it() -> None:
    """The card has no room for the model's copy here, but for keys and values."""
    spec = machines.model("llama-3.1-8b")
    found = planned(spec, DESKTOP, replace(BF16, vram=4 * GIB))
    assert found.draft.gpu == -1
    assert any(device >= 0 for device in found.target.kv_devices)
    assert found.draft.memory[0].kv_cache == spec.kv_bytes(2048)
