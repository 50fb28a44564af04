import dataclasses
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.planning.calibration import (
    GROW_CHECKS,
    Grow,
    Keep,
    Shrink,
    Watch,
    expected_s,
    learn,
    watch_memory,
    worth_changing,
)
from core.planning.planner import place
from core.planning.profile_store import LEARNED_FILE, model_key, recall, remember
from core.spec import Budget, Hardware, Plan, Profile, Times
from core.units import GIB, MIB
from tests.core.machines import A10, DESKTOP, LAPTOP, model

SPEC = model("llama-3.1-8b")
BUDGET = Budget(format="int8", context=4096)


@cache
def plan_for(hardware: Hardware = DESKTOP, profile: Profile | None = None, budget: Budget = BUDGET) -> Plan:
    return place(SPEC, hardware, budget, profile=profile)


def slower(hardware: Hardware, factor: float) -> Hardware:
    """Return the same machine with CPU kernels that take `factor` times as long."""
    rates = tuple(
        replace(rate, bytes_s=rate.bytes_s / factor, flops=tuple(flops / factor for flops in rate.flops))
        for rate in hardware.cpu.rates
    )
    return replace(hardware, cpu=replace(hardware.cpu, rates=rates))


def test_a_right_prediction_changes_nothing() -> None:
    plan = plan_for()
    profile = learn(Profile(), plan, plan.decode_times, 50)
    assert profile == Profile(tokens=50)
    noise = replace(plan.decode_times, cpu=plan.decode_times.cpu * 1.04)
    assert learn(profile, plan, noise, 50) == Profile(tokens=100)


@pytest.mark.parametrize("factor", [0.6, 1.7, 3.0])
def test_a_wrong_rate_is_found_within_a_few_replies(factor: float) -> None:
    """Measures on a machine that is slower than recorded, and plans with the learned corrections."""
    truth, profile = slower(DESKTOP, factor), Profile()
    for _ in range(8):
        plan = plan_for(profile=profile)
        real = place(SPEC, truth, BUDGET).decode_times
        share = plan.decode_times.cpu / plan.profile.cpu * factor
        measured = Times(cpu=share, link=plan.decode_times.link, total=real.total)
        profile = learn(profile, plan, measured, 30)
    assert profile.cpu == pytest.approx(factor, rel=0.1)
    assert profile.link == 1.0


def test_the_blame_falls_on_whom_was_slow() -> None:
    plan = plan_for()
    expected = plan.decode_times
    slow_cpu = learn(Profile(), plan, Times(cpu=2 * expected.cpu, total=expected.total + expected.cpu), 24)
    assert slow_cpu.cpu > 1
    busy = replace(plan, decode_times=replace(expected, link=expected.total))
    slow_link = learn(Profile(), busy, Times(cpu=expected.cpu, total=1.5 * expected.total), 24)
    assert (slow_link.cpu, slow_link.gpu, slow_link.overhead) == (1, 1, 1)
    assert slow_link.link > 1
    idle = replace(plan, decode_times=replace(expected, link=0.0))
    slow_rest = learn(Profile(), idle, Times(cpu=expected.cpu, total=1.5 * expected.total), 24)
    assert (slow_rest.cpu, slow_rest.link) == (1, 1)
    assert slow_rest.overhead > 1


def test_learning_the_same_twice_does_not_run_away() -> None:
    """The plan stays although its rates are known to be wrong: measuring it again teaches nothing new."""
    plan, profile = plan_for(), Profile()
    for _ in range(40):
        profile = learn(profile, plan, Times(total=plan.decode_times.total * 1.5), 24)
    assert profile.cpu == pytest.approx(1.5, rel=0.06)
    assert profile.link == profile.cpu == profile.gpu == profile.overhead


def test_corrections_are_bounded() -> None:
    plan, profile = plan_for(), Profile()
    for _ in range(100):
        plan = replace(plan, profile=profile)
        profile = learn(profile, plan, Times(total=plan.decode_times.total * 50), 24)
    assert profile.cpu == 4.0


@settings(deadline=None, max_examples=12)
@given(st.lists(st.floats(0.9, 1.12), min_size=12, max_size=12))
def test_noise_does_not_make_shares_go_to_and_fro(noise: list[float]) -> None:
    plan, profile, changes = plan_for(), Profile(), 0
    for factor in noise:
        profile = learn(profile, plan, Times(total=plan.decode_times.total * factor), 24)
        candidate = plan_for(profile=profile)
        if candidate.linears != plan.linears and worth_changing(plan, candidate):
            plan, changes = candidate, changes + 1
    assert changes <= 2


def test_a_plan_is_changed_when_an_engine_turns_out_otherwise() -> None:
    plan = plan_for()
    assert expected_s(plan, plan.profile) == pytest.approx(plan.decode_times.total)
    assert not worth_changing(plan, plan_for(profile=Profile(cpu=1.02)))
    better = plan_for(profile=Profile(cpu=2.5))
    assert worth_changing(plan, better)
    assert not worth_changing(better, better)
    assert sum(linear.decode.cpu for linear in better.linears) < sum(linear.decode.cpu for linear in plan.linears)


def test_the_prediction_is_called_measured_once_it_was() -> None:
    assert plan_for().confidence == "derived"
    assert plan_for(profile=Profile(tokens=24)).confidence == "measured"
    guessed = replace(DESKTOP, measured=False)
    assert plan_for(guessed).confidence == "guess"


def free_after(plan: Plan) -> int:
    """Return the device's free bytes after the plan has been carried out."""
    return plan.memory[-1].free_before - plan.memory[-1].used


def test_nothing_is_done_while_nothing_changes() -> None:
    plan = plan_for()
    watch = Watch()
    for _ in range(20):
        decision, watch = watch_memory(plan, free_after(plan), watch)
        assert decision == Keep()


def test_pressure_shrinks_at_once_to_what_leaves_the_margin() -> None:
    plan = plan_for()
    free = plan.memory[-1].margin // 4
    decision, _ = watch_memory(plan, free, Watch())
    assert isinstance(decision, Shrink)
    assert decision.vram == plan.memory[-1].used + free - plan.memory[-1].margin
    smaller = plan_for(budget=replace(BUDGET, vram=decision.vram))
    assert smaller.memory[-1].used <= decision.vram
    assert smaller.memory[-1].used > decision.vram - 200 * MIB


def test_a_little_pressure_is_what_the_margin_is_for() -> None:
    plan = plan_for()
    decision, _ = watch_memory(plan, int(plan.memory[-1].margin * 0.7), Watch())
    assert decision == Keep()


def test_a_lower_cap_shrinks_and_a_shrunken_pool_too() -> None:
    plan = plan_for()
    decision, _ = watch_memory(plan, free_after(plan), Watch(), cap=2 * GIB)
    assert decision == Shrink(2 * GIB, decision.reason)
    decision, _ = watch_memory(
        replace(plan, memory=(*plan.memory[:1], replace(plan.memory[-1], margin=0))), -GIB, Watch()
    )
    assert isinstance(decision, Shrink)
    assert decision.vram == plan.memory[-1].used - GIB


def test_room_is_taken_only_after_it_has_lasted() -> None:
    small = plan_for(budget=replace(BUDGET, vram=3 * GIB))
    watch, seen = Watch(), []
    for _ in range(GROW_CHECKS):
        decision, watch = watch_memory(small, 4 * GIB, watch)
        seen.append(type(decision))
    assert seen == [Keep] * (GROW_CHECKS - 1) + [Grow]
    _, watch = watch_memory(small, 4 * GIB, Watch(GROW_CHECKS - 2))
    _, watch = watch_memory(small, small.memory[-1].margin, watch)
    assert watch == Watch()


def test_a_plan_that_has_everything_does_not_grow() -> None:
    plan = place(SPEC, A10, Budget(format="int4"))
    decision, _ = watch_memory(plan, 12 * GIB, Watch(GROW_CHECKS))
    assert decision == Keep()


def test_growing_and_shrinking_do_not_alternate() -> None:
    """A program takes 2 GB and releases them: weights move once each way, not repeatedly."""
    plan, watch, changes = plan_for(), Watch(), 0
    for others in [0] * 10 + [2 * GIB] * 20 + [0] * 20:
        free = DESKTOP.gpus[0].vram_free - others - plan.memory[-1].used
        decision, watch = watch_memory(plan, free, watch)
        if not isinstance(decision, Keep):
            plan = plan_for(budget=replace(BUDGET, vram=decision.vram))
            changes += 1
    assert changes == 2
    assert plan.memory[-1].used == plan_for().memory[-1].used


def test_what_was_learned_is_remembered_by_model(tmp_path: Path) -> None:
    plan = plan_for()
    key = model_key(plan, DESKTOP)
    assert recall(tmp_path / "new", key) == Profile()
    remember(tmp_path / "new", key, Profile(1.25, 0.8, tokens=90))
    remember(tmp_path / "new", "other", Profile(2.0))
    assert recall(tmp_path / "new", key) == Profile(1.25, 0.8, tokens=90)
    assert model_key(replace(plan, format="int4"), DESKTOP) != key
    assert model_key(plan, LAPTOP) != key


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": {"cpu": 2, "fans": 3}}', '{"key": 7}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "learned.json").write_text(content, encoding="utf-8")
    assert recall(tmp_path, "key") == Profile()
    remember(tmp_path, "key", Profile(1.5))
    assert recall(tmp_path, "key").cpu == 1.5
    remember(tmp_path, "key", Profile(hottest=(0.5, 1.0)))
    assert recall(tmp_path, "key").hottest == (0.5, 1.0)


@pytest.mark.parametrize("hottest", ["[0.5, 0.4, 1]", "[-1, 1]", "[0.5]", "[NaN, 1]", '["x"]', '{"a": 1}', "3"])
def test_what_cannot_be_the_use_of_experts_counts_as_unknown(hottest: str, tmp_path: Path) -> None:
    (tmp_path / LEARNED_FILE).write_text(f'{{"key": {{"hottest": {hottest}}}}}', encoding="utf-8")
    assert recall(tmp_path, "key") == Profile()


def test_every_factor_is_an_engine() -> None:
    names = {field.name for field in dataclasses.fields(Profile)} - {"tokens", "hottest"}
    assert names <= {field.name for field in dataclasses.fields(Times)}
