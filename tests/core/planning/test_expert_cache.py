"""Which experts lie on the device: how many fit, which are chosen, and when one replaces another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.planning.cost_model import classify
from core.planning.expert_cache import (
    Exchange,
    exchange,
    hottest,
    popularity,
    set_aside,
    whole_experts,
    without_residents,
)
from core.planning.expert_work import expert_rates
from core.planning.machine_rates import MachineRates
from core.planning.planner import explain, place
from core.spec import Budget, Format, Hardware, ModelSpec, Plan, Profile, Rows
from core.units import GIB
from tests.core.machines import DESKTOP, cpu, model


@pytest.mark.parametrize(("given", "count"), [(0, 0), (99, 0), (100, 1), (350, 3), (800, 8), (10_000, 8)])
def test_as_many_whole_ones_as_the_bytes_hold(given: int, count: int) -> None:
    assert whole_experts(given, 100, 8) == count


def test_rows_of_experts_on_the_host_go_where_the_others_go() -> None:
    assert without_residents(Rows(4, 0, 6)) == Rows(0, 0, 10)
    assert without_residents(Rows(4, 6, 0)) == Rows(0, 10, 0)
    assert without_residents(Rows(4, 3, 3)) == Rows(0, 3, 7)


def test_the_most_used_first_and_of_equals_the_first() -> None:
    assert hottest([1, 5, 5, 0], 3) == (1, 2, 0)


def test_what_travels_takes_the_place_of_held_ones_layer_by_layer() -> None:
    assert set_aside((3, 5, 0), 3) == (2, 3, 0)
    assert set_aside((1, 0), 3) == (0, 0)


def test_one_replaces_another_only_if_it_is_used_clearly_more() -> None:
    assert exchange([10, 0, 30, 29], {0, 1}) == Exchange(comes=2, goes=1)
    assert exchange([10, 11, 12, 12], {0, 1}) is None
    assert exchange([1, 0, 3, 0], {0, 1}) is None
    assert exchange([100, 90, 110, 0], {0, 1}) is None
    assert exchange([46, 20, 46, 0], {0, 1}) is None
    assert exchange([1, 1], {0, 1}) is None
    assert exchange([1, 100], set()) is None


def test_use_is_known_of_eighths_and_only_once_enough_was_counted() -> None:
    skewed = [1000.0] * 2 + [0.0] * 14
    assert popularity([]) == popularity([[3.0] * 16]) == ()
    assert popularity([skewed, [0.0] * 16]) == (1,) * 8
    assert popularity([skewed, [100.0] * 16]) == tuple((1 + part / 8) / 2 for part in range(1, 9))


def test_without_counts_a_part_of_the_experts_is_that_part_of_their_use() -> None:
    assert Profile().covered(0.3) == 0.3
    counted = Profile(hottest=(0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0))
    assert [counted.covered(part) for part in (0, 0.0625, 0.125, 0.25, 1)] == pytest.approx([0, 0.25, 0.5, 0.7, 1])


@pytest.mark.parametrize(("name", "read"), [("qwen3-30b-a3b", 86e9), ("qwen3.6-35b-a3b", 78e9)])
def test_a_card_that_lists_experts_holds_them_with_its_free_memory(name: str, read: float) -> None:
    """With 15 us per launch and a fast CPU, one launch per expert costs more than it saves; a single one costs less."""
    spec, card = model(name), replace(DESKTOP.gpus[0], launch_s=15e-6)
    fast = cpu(read, 64 * GIB, 56 * GIB, gflops=3000e9)
    lists, each = (
        place(spec, Hardware(fast, (replace(card, lists_weights=how),)), Budget(format="int4", context=4096))
        for how in (True, False)
    )
    assert held_bytes(spec, lists) > 0.6 * card.vram_free
    assert held_bytes(spec, each) == 0
    assert lists.expert_rates is not None
    assert lists.expert_rates.at_once_s == pytest.approx(4 * 15e-6)


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_only_quantised_experts_and_few_rows_are_listed(format: Format) -> None:
    spec, card = model("qwen3-30b-a3b"), replace(DESKTOP.gpus[0], launch_s=15e-6, lists_weights=True)
    machine = MachineRates(DESKTOP, card, Profile(), 8)
    found = [item.gpu_call for item in classify(spec, format, machine) if item.chosen]
    few = 30e-6 if format == "int4" else 120e-6
    assert found == [pytest.approx((few, few, 120e-6, 120e-6))] * 2


def held_bytes(spec: ModelSpec, plan: Plan) -> float:
    """Return the bytes of experts on the card."""
    experts = [(one, plan.by_name[one.name]) for one in spec.linears if one.experts is not None]
    return sum(spec.linear_bytes(one, plan.format) * made.decode.resident / made.rows for one, made in experts)


def test_a_plan_counts_on_popular_experts_only_once_their_use_was_measured() -> None:
    spec, hardware, budget = model("qwen3-30b-a3b"), DESKTOP, Budget(format="int4", vram=4 * GIB)
    counted = Profile(hottest=(0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0))
    plain, better = (place(spec, hardware, budget, profile=profile) for profile in (None, counted))
    assert better.decode.likely > 1.05 * plain.decode.likely
    assert "of the experts" not in " ".join(explain(plain, spec, hardware))
    assert "of the experts" in " ".join(explain(better, spec, hardware))


def test_a_copy_and_each_of_its_pieces_take_longer_while_the_cpu_computes() -> None:
    spec = model("qwen3-30b-a3b")
    alone, beside = (
        expert_rates(spec, "int4", MachineRates(DESKTOP, replace(DESKTOP.gpus[0], link_under_cpu=part), Profile(), 8))
        for part in (1.0, 0.5)
    )
    assert alone is not None
    assert beside is not None
    assert alone.piece_s > 0
    assert (beside.copy_s, beside.piece_s) == pytest.approx((2 * alone.copy_s, 2 * alone.piece_s))
