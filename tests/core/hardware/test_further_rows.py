"""The cost of a further input row: measured while the memory bandwidth changes, and part of all plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import cast

import pytest

from core.hardware import benchmark
from core.hardware.workloads import CpuLoad
from core.planning.drafting import prices
from core.planning.fixed_cost import fixed_costs
from core.planning.machine_rates import MachineRates
from core.planning.planner import place
from core.planning.speculation import best_size
from core.spec import DECODE, FEW, Budget, KernelRate, Profile
from core.units import GIB
from tests.core import machines
from tests.core.machines import A10, LAPTOP

ONE_S, ROW_S = 1e-3, 5e-5


class Slowing:
    """Weights whose products take longer and longer, as if other programs began to use the memory."""

    def __init__(self) -> None:
        self._calls = count()

    def products(self, tokens: int = 1) -> list[Callable[[], float]]:
        return [lambda: (ONE_S + (tokens - 1) * ROW_S) * (1 + next(self._calls) / 200)] * 12


def test_a_further_row_costs_the_same_while_everything_becomes_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "seconds_of", lambda work: work())
    row, rest = benchmark.further_rows_s(cast("CpuLoad", Slowing()))
    assert row == pytest.approx(ROW_S, rel=0.5)
    assert rest == pytest.approx(15 * ROW_S, rel=0.5)


def test_a_rate_knows_what_a_second_turn_of_the_kernels_costs() -> None:
    """Times of one row's operations: 1 for one row, 0.1 for each further one, and 3.7 for sixteen."""
    rate = KernelRate("int4", 1e9, (1.0, 4 / 1.3, 8.0, 8.0), 16 / 3.7)
    taken = [rate.for_rows(rows).seconds(0.0, rows, FEW) for rows in (1, 2, 4, 8, 12, 16)]
    assert taken == pytest.approx([1.0, 1.1, 1.3, 1.7, 2.7, 3.7])
    unknown = replace(rate, most=0.0)
    assert unknown.for_rows(16).seconds(0.0, 16, FEW) == pytest.approx(2.5), "as before"
    assert rate.for_rows(4) is rate
    assert rate.scaled(2).for_rows(16).seconds(0.0, 16, FEW) == pytest.approx(1.85)


@pytest.mark.parametrize(("name", "share", "grows"), [("llama-3.2-1b", 0.5, True), ("qwen3-30b-a3b", 0.0, False)])
def test_further_rows_cost_more_in_another_turn_and_less_among_experts(name: str, share: float, grows: bool) -> None:
    """A dense model pays for a second turn of the kernels; of experts, ever more are in use already."""
    rates = tuple(replace(rate, most=share * rate.flops[1]) for rate in A10.cpu.rates)
    machine, budget = replace(A10, gpus=(), cpu=replace(A10.cpu, rates=rates)), Budget(format="int4", context=2048)
    found = prices(place(machines.model(name), machine, budget), None)
    early, late = found.of_check(2) - found.of_check(1), found.of_check(12) - found.of_check(11)
    assert late > 1.5 * early if grows else late < early


def test_where_weights_are_streamed_further_rows_are_free() -> None:
    spec, machine = machines.model("llama-3.2-1b"), machines.simulated(GIB, 0.5e9)
    found = prices(place(spec, machine, Budget(format="bf16", context=2048), "stream"), None)
    assert found.of_check(15) < 1.2
    assert best_size(0.9, found.of_check) == 15


def test_further_rows_pay_for_attention_and_for_being_drawn_from() -> None:
    spec = machines.model("llama-3.2-1b")
    machine = MachineRates(LAPTOP, None, Profile(), LAPTOP.cpu.threads)
    home = (-1,) * len(spec.kv_layers)
    short, long = (fixed_costs(spec, machine, home, occupied) for occupied in (256, 4096))
    rows = [costs.attention[FEW] - costs.attention[DECODE] for costs in (short, long)]
    assert rows[1] == pytest.approx(16 * rows[0])
    assert rows[0] > 0
    assert short.overhead[FEW] > short.overhead[DECODE]


def test_what_is_slow_to_draw_from_makes_drafts_and_checks_dearer() -> None:
    spec, budget = machines.model("llama-3.2-1b"), Budget(format="bf16", context=2048)
    slow = replace(LAPTOP, cpu=replace(LAPTOP.cpu, score_s=100 * LAPTOP.cpu.score_s))
    before, after = (
        prices(place(spec, one, budget), place(spec, one, replace(budget, format="int4"))) for one in (LAPTOP, slow)
    )
    assert after.of_check(1) > before.of_check(1)
    assert after.draft > before.draft
