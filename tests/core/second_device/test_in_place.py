"""A device with unified memory reads weights where they lie in RAM."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from core.accelerators.card_checks import reads_in_place, try_card
from core.accelerators.in_place import by_address
from core.spec import Format, ModelSpec, Plan
from core.units import MIB
from tests.core.offload.test_hetero_linear import TOKENS, Bench
from tests.core.second_device import SecondCard, SecondDevice
from tests.core.second_device.placed import Placed, around, divided, whole
from tests.core.second_device.test_engine import thirds

PLANS: dict[str, Callable[[ModelSpec], Plan]] = {
    "whole": whole,
    "divided": lambda spec: divided(spec, 1),
    "paired": lambda spec: around(spec, paired=True),
    "thirds": lambda spec: thirds(spec, 0, kv_on_device=True),
}


@pytest.fixture
def unified(card: SecondCard) -> Iterator[SecondCard]:
    """Provide the device as one that shares the host's memory."""
    card.told.set(unified=1)
    yield card
    card.told.set(unified=0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("llama", tmp_path_factory.mktemp("llama"))


def in_place(plan: Plan) -> Plan:
    return replace(plan, in_place=True)


def test_the_device_reads_the_hosts_tensor_as_long_as_its_own_lives(unified: SecondCard) -> None:
    before, copies = unified.memory().used, unified.told.get("copies_up")
    host = torch.arange(MIB)
    there = unified.in_place(host)[MIB // 2 :]
    host[-1] = 7
    del host
    gc.collect()
    others = torch.zeros(MIB, dtype=torch.int64)  # possibly where the tensor was
    found = unified.to_host(there + 1).result()
    assert found[:-1].equal(torch.arange(MIB // 2 + 1, MIB))
    assert found[-1] == 8
    assert others.sum() == 0
    assert unified.memory().used - before < 8 * MIB
    assert unified.told.get("copies_up") == copies


def test_a_device_with_its_own_memory_is_found_out(second: SecondDevice, card: SecondCard) -> None:
    assert not reads_in_place(card)
    assert second.get("violations")
    second.plug(True)


def test_it_is_tried_whether_a_device_reads_in_place_as_fast_as_from_copies(unified: SecondCard) -> None:
    assert try_card(unified.device).unified
    unified.told.set(lag=0.05)  # which a busy machine delays by less than a half
    assert reads_in_place(unified)
    unified.told.set(shared_lag=0.1)
    assert not reads_in_place(unified)
    unified.told.set(lag=0, shared_lag=0)


def test_a_device_that_reads_something_else_is_found_out(unified: SecondCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would that has caches of its own, or counts addresses from elsewhere."""
    elsewhere = replace(unified.can, in_place=lambda tensor, device: by_address(torch.zeros_like(tensor), device))
    monkeypatch.setattr(unified, "can", elsewhere)
    assert not reads_in_place(unified)


@pytest.mark.parametrize(("name", "format"), [*itertools.product(PLANS, ("bf16", "int8")), ("whole", "int4")])
def test_nothing_changes_but_the_memory_that_is_taken(
    unified: SecondCard, bench: Bench, name: str, format: Format
) -> None:
    plan = PLANS[name](bench.spec)
    copied = _reply(Placed(bench, unified, plan, format), unified, bench)
    shared = _reply(Placed(bench, unified, in_place(plan), format), unified, bench)
    assert shared[0] == copied[0]
    assert format != "bf16" or shared[0] == bench.expected
    made = zip(bench.spec.linears, plan.linears, strict=True)
    rows = [(linear, one) for linear, one in made if one.resident == one.rows or not one.by_columns]
    saved = sum(bench.spec.part_bytes(linear, one, one.resident, format) for linear, one in rows)
    assert copied[1] - shared[1] >= saved > 0


def test_another_plan_moves_no_weights(unified: SecondCard, bench: Bench) -> None:
    first, second = (in_place(plan(bench.spec)) for plan in (whole, PLANS["divided"]))
    placed = Placed(bench, unified, first)
    copies = unified.told.get("copies_up")
    list(placed.placement.apply(second))
    assert unified.told.get("copies_up") == copies
    assert list(placed.draw(bench.prompt, TOKENS)) == bench.expected
    placed.close(unified)


def test_nothing_reads_the_weights_any_more_once_they_may_be_freed(unified: SecondCard, bench: Bench) -> None:
    placed = Placed(bench, unified, in_place(whole(bench.spec, captured=False)))
    unified.told.set(lag=0.01)
    placed.model.module.model.layers[0].mlp(torch.zeros(1, 4, bench.spec.hidden, device=unified.device))
    assert unified.told.get("waiting")
    placed.placement.close()
    assert not unified.told.get("waiting")
    unified.told.set(lag=0)
    unified.close()


def _reply(placed: Placed, card: SecondCard, bench: Bench) -> tuple[list[int], int]:
    """Return a reply, and the bytes of the device that were in use before it."""
    gc.collect()
    used = card.memory().used
    found = list(placed.draw(bench.prompt, TOKENS))
    placed.close(card)
    return found, used
