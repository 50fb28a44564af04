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
from core.spec import DECODE, FEW, Budget, Profile
from tests.core import machines
from tests.core.machines import LAPTOP

ONE_S, ROW_S = 1e-3, 5e-5


class Slowing:
    """Weights whose products take longer and longer, as if other programs began to use the memory."""

    def __init__(self) -> None:
        self._calls = count()

    def products(self, tokens: int = 1) -> list[Callable[[], float]]:
        return [lambda: (ONE_S + (tokens - 1) * ROW_S) * (1 + next(self._calls) / 200)] * 12


def test_a_further_row_costs_the_same_while_everything_becomes_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "seconds_of", lambda work: work())
    found = benchmark.further_row_s(cast("CpuLoad", Slowing()))
    assert found == pytest.approx(ROW_S, rel=0.5)


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
    assert after.row > before.row
    assert after.draft > before.draft
