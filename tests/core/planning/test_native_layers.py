"""The price of a pass on the processor, term by term: what each measured cost is charged for, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.planning.native_layers import OWN_CALLS, all_in_runs, in_own_calls, in_runs
from core.planning.planner import place
from core.spec import Budget, Cpu, Hardware, ModelSpec, Plan, Times
from tests.core.machines import DESKTOP, LAPTOP, model

TERMS = ("call_s", "layer_s", "run_s", "pass_s", "state_s")


def charged(spec: ModelSpec, term: str, of: Callable[[Plan], Times] = lambda plan: plan.decode_times) -> float:
    """Return how often a plan of the processor alone contains one of the fixed costs."""
    budget = Budget(format="int8", context=2048, whole_head=True)

    def total(cost: float) -> float:
        cpu = replace(LAPTOP.cpu, **(dict[str, Any](dict.fromkeys(TERMS, 0.0)) | {term: cost}))
        return of(place(spec, Hardware(cpu), budget)).total

    return (total(1e-3) - total(0.0)) / 1e-3


def of_prompt(plan: Plan) -> Times:
    return plan.prefill_times


def recurrent(spec: ModelSpec, count: int) -> ModelSpec:
    """Return a model whose first `count` layers have recurrent states, and four linears that read the input."""
    first = range(count)
    linears = (one for one in spec.linears for _ in range(2 if one.layer in first and one.name.endswith(".q") else 1))
    kv = (replace(one, state_bytes=4096) if one.layer in first else one for one in spec.kv_layers)
    return replace(spec, linears=tuple(linears), kv_layers=tuple(kv))


def test_a_token_through_one_call_pays_neither_for_linears_nor_for_python_between_layers() -> None:
    spec = model("llama-3.2-1b")
    assert charged(spec, "run_s") == pytest.approx(spec.layers)
    assert charged(spec, "call_s") == pytest.approx(1), "the output head"
    assert charged(spec, "layer_s") == pytest.approx(0)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-20b"])
def test_layers_with_experts_form_runs(name: str) -> None:
    assert all_in_runs(model(name))


def test_layers_that_our_library_does_not_know_pay_for_each_linear() -> None:
    """OPT has as many linears by input as a layer with experts, but none of them are experts."""
    spec = model("opt-1.3b")
    assert not in_runs(spec)
    assert charged(spec, "run_s") == pytest.approx(0)
    assert charged(spec, "layer_s") == pytest.approx(spec.layers)
    assert charged(spec, "call_s") == pytest.approx(6 * spec.layers + 1)


def test_recurrent_layers_pay_for_calls_of_their_own() -> None:
    spec = recurrent(model("llama-3.2-1b"), 12)
    assert in_own_calls(spec) == frozenset(range(12))
    assert in_runs(spec) == frozenset(range(12, 16))
    assert not all_in_runs(spec)
    assert charged(spec, "run_s") == pytest.approx(spec.layers)
    assert charged(spec, "call_s") == pytest.approx(12 * OWN_CALLS + 1)
    assert charged(spec, "layer_s") == pytest.approx(0)


def test_a_pass_that_checks_drafts_pays_what_a_token_pays() -> None:
    spec = model("llama-3.2-1b")

    def checked(plan: Plan) -> Times:
        return Times(total=plan.check_s[0])

    assert charged(spec, "run_s", checked) == pytest.approx(spec.layers)
    assert charged(spec, "layer_s", checked) == charged(spec, "state_s", checked) == pytest.approx(0)


def test_a_prompt_pays_for_python_linears_and_the_states_between_them() -> None:
    spec = model("llama-3.2-1b")
    assert charged(spec, "layer_s", of_prompt) == pytest.approx(spec.layers)
    assert charged(spec, "call_s", of_prompt) == pytest.approx(7 * spec.layers + 1)
    assert charged(spec, "run_s", of_prompt) == pytest.approx(0)
    linears = [one for one in spec.linears if one.layer >= 0]
    assert charged(spec, "state_s", of_prompt) == pytest.approx(512 * sum(one.rows + one.columns for one in linears))
    assert charged(spec, "state_s") == 0


def test_of_experts_a_prompt_pays_for_the_states_of_those_in_use() -> None:
    spec = model("qwen3-30b-a3b")
    fewer = tuple(replace(one, active=one.active // 2) for one in spec.linears if one.experts)
    others = tuple(one for one in spec.linears if not one.experts)
    less = charged(replace(spec, linears=(*fewer, *others)), "state_s", of_prompt)
    assert 0.5 < less / charged(spec, "state_s", of_prompt) < 0.8


@pytest.mark.parametrize("of", [lambda plan: plan.decode_times, of_prompt])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "opt-1.3b"])
def test_each_pass_pays_once_for_what_python_does_around_it(name: str, of: Callable[[Plan], Times]) -> None:
    assert charged(model(name), "pass_s", of) == pytest.approx(1)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-30b-a3b", "opt-1.3b"])
def test_without_a_device_the_shares_of_a_token_sum_up_to_its_time(name: str) -> None:
    plan = place(model(name), LAPTOP, Budget(format="int4", context=4096))
    for times in (plan.decode_times, plan.prefill_times):
        assert times.total == pytest.approx(times.cpu + times.attention + times.overhead)


def test_a_layer_in_a_run_beside_a_device_costs_the_same() -> None:
    spec, budget = model("llama-3.2-1b"), Budget(format="bf16", vram=0, context=2048)

    def hosted(run_s: float) -> Plan:
        cpu: Cpu = replace(DESKTOP.cpu, run_s=run_s)
        card = replace(DESKTOP.gpus[0], requested=True, layer_s=0.1)
        return place(spec, replace(DESKTOP, cpu=cpu, gpus=(card,)), replace(budget, vram=1 << 30))

    cheap, dear = hosted(0.0), hosted(1e-5)
    assert len(cheap.host_layers) == len(dear.host_layers) > 0
    assert dear.decode_times.total - cheap.decode_times.total == pytest.approx(1e-5 * len(dear.host_layers))
