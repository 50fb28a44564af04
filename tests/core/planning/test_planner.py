import os
import time
from bisect import bisect_left
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.planning.cost_model import NEARLY_ALL
from core.planning.planner import explain, place
from core.spec import (
    BUCKET_TOKENS,
    FORMATS,
    QUANTUM,
    Budget,
    Gpu,
    Hardware,
    KvLayer,
    LinearSpec,
    Link,
    ModelSpec,
    Plan,
    cut_columns,
    row_bytes,
)
from core.units import GIB, MIB
from tests.core import machines
from tests.core.machines import A10, DESKTOP, LAPTOP, MACHINES, TWO_CARDS

# HETEGEN_PLANS=10000 for the long run.
FEW_TOKENS = 8
PLANS = int(os.environ.get("HETEGEN_PLANS", "800"))
model = cache(machines.model)
QUICK = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    hidden = draw(st.integers(1, 4096))
    layers = draw(st.integers(1, 12))
    linears = []
    rows = st.integers(1, 20_000)
    any_layer = st.lists(st.tuples(rows, st.integers(0, 2)), min_size=1, max_size=5)
    usual_layer = st.tuples(*(st.tuples(rows, st.just(group)) for group in (0, 0, 0, 1, 2, 2, 3)))
    shapes = draw(st.one_of(any_layer, usual_layer))
    experts = draw(st.sampled_from([None, None, None, 1, 8, 64]))
    inner = draw(rows) if len(shapes) == 7 and experts is None and draw(st.booleans()) else 0
    heads = draw(st.sampled_from((0, 2, 3, 8))) if len(shapes) == 7 else 0
    width, shared = 16 * draw(st.integers(1, 16)), draw(st.integers(1, 4))
    for layer in range(layers):
        for number, (rows, group) in enumerate(shapes):
            many = experts if number == len(shapes) - 1 else None
            one = LinearSpec(f"{layer}.{number}", rows, hidden, 4 * layer + group, layer, many, min(2, many or 1))
            if inner and group >= 2:
                one = replace(one, rows=inner) if group == 2 else replace(one, columns=inner, after=4 * layer + 2)
            if heads and number < 3:
                one = replace(one, rows=heads * width * (1 if number else shared))
            elif heads and number == 3:
                one = replace(one, columns=heads * width * shared, attends=4 * layer, heads=heads)
            linears.append(one)
    vocab = draw(st.integers(2, 150_000))
    tied = draw(st.booleans())
    linears.append(LinearSpec("head", vocab, hidden, 10_000))
    windows = st.sampled_from([0, 0, 128])
    kv = tuple(KvLayer(layer, draw(st.integers(0, 20_000)), draw(windows)) for layer in range(layers))
    dtype = draw(st.sampled_from(["bf16", "fp16", "fp32"]))
    return ModelSpec(
        "random", "Random", layers, hidden, vocab, draw(st.integers(1, 200_000)), tuple(linears), kv,
        draw(st.integers(0, 10 * MIB)), 2 * vocab * hidden, "head", tied, dtype,
    )  # fmt: skip


RATES = st.floats(1e8, 4e11)
PARTS = st.floats(0.05, 1.0)


@st.composite
def gpus(draw: st.DrawFn, index: int) -> Gpu:
    total = draw(st.integers(0, 48 * GIB))
    link = draw(RATES)
    return Gpu(
        f"card {index}", index, total, draw(st.integers(0, total)), draw(RATES) * 4, draw(st.floats(1e11, 1e15)),
        Link(link, link * draw(PARTS), link, link * draw(PARTS), link * draw(PARTS), draw(st.floats(1e-6, 1e-3))),
        cpu_under_copy=draw(PARTS), link_under_cpu=draw(PARTS), simulated=draw(st.booleans()),
        requested=draw(st.booleans()),
        shares_cores=draw(st.booleans()), unified=draw(st.booleans()),
        in_place=draw(st.booleans()), cpu_beside=draw(PARTS), gpu_beside=draw(PARTS),
    )  # fmt: skip


@st.composite
def hardwares(draw: st.DrawFn) -> Hardware:
    ram = draw(st.integers(GIB, 256 * GIB))
    cpu = machines.cpu(
        draw(RATES), ram, draw(st.integers(0, ram)), draw(st.integers(1, 64)), draw(st.floats(1e9, 1e13))
    )
    cards = tuple(draw(gpus(index)) for index in range(draw(st.integers(0, 2))))
    return Hardware(cpu, cards, draw(st.floats(1e7, 1e10)), draw(st.booleans()))


BUDGETS = st.builds(
    Budget,
    vram=st.none() | st.integers(0, 32 * GIB),
    ram=st.none() | st.integers(0, 64 * GIB),
    threads=st.none() | st.integers(1, 64),
    context=st.none() | st.integers(1, 100_000),
    format=st.sampled_from(["auto", *FORMATS]),
)
STRATEGIES = st.sampled_from(["hetegen", "stream", "cpu", "serial"])


def check(plan: Plan, spec: ModelSpec, hardware: Hardware, budget: Budget) -> None:
    """Check the invariants of all plans."""
    assert [linear.name for linear in plan.linears] == [linear.name for linear in spec.linears]
    for linear, made in zip(plan.linears, spec.linears, strict=True):
        quantum = max(QUANTUM, cut_columns(spec.storage(made, plan.format))) if linear.by_columns else QUANTUM
        counted = made.columns if linear.by_columns else made.rows
        if linear.by_columns:
            before = [one for one in plan.linears if one.group == linear.after]
            assert (made.attends if linear.heads else made.after) == linear.after
            assert plan.strategy in ("hetegen", "cpu")
            assert before
            for one in (*before, linear) if linear.heads else ():
                assert one.resident * made.heads == one.rows * linear.heads, "whole heads"
                assert not any(rows.streamed for rows in one.shares[:2])
            assert linear.heads or {one.shares for one in before} == {linear.shares}
        for tokens, rows in zip(BUCKET_TOKENS, linear.shares, strict=True):
            assert min(rows.resident, rows.streamed, rows.cpu) >= 0
            assert rows.total == counted
            assert rows.resident == linear.resident
            assert rows.resident % quantum == 0 or rows.resident == counted
            assert rows.streamed % quantum == 0 or rows.cpu == 0
            assert plan.gpu >= 0 or rows.cpu == counted
            assert not rows.streamed or plan.ring.total
            assert not rows.streamed or made.touched(tokens) >= NEARLY_ALL
            assert made.layer not in plan.host_layers or tokens > FEW_TOKENS or rows.cpu == counted
    for layer, device in zip(spec.kv_layers, plan.kv_devices, strict=True):
        assert layer.layer not in plan.host_layers or device == -1
    assert set(plan.kv_devices) <= {plan.gpu, -1}
    assert 0 < plan.context <= spec.context_limit
    assert 0 < plan.decode.low <= plan.decode.likely <= plan.decode.high
    assert plan.prefill.likely > 0
    assert plan.reason.endswith(".")
    held = sum(
        made.matrices * made.rows * row_bytes(spec.storage(made, plan.format), linear.resident)
        if linear.by_columns
        else made.matrices * linear.resident * spec.row_bytes(made, plan.format)
        for linear, made in zip(plan.linears, spec.linears, strict=True)
    )
    for memory in plan.memory:
        if memory.device != "cpu" or plan.fits != "no":
            assert min(memory.weights, memory.kv_cache, memory.workspace, memory.staging) >= 0
            assert memory.used <= max(0, memory.free_before - memory.margin), memory
    if plan.gpu >= 0:
        assert plan.memory[-1].weights >= (spec.resident_bytes if plan.in_place else held)
        assert budget.vram is None or plan.memory[-1].used <= budget.vram
        if hardware.gpus[plan.gpu].unified and plan.fits != "no":
            ram, card = plan.memory
            assert ram.used + card.used <= max(0, ram.free_before - ram.margin)
    if plan.fits != "no" and budget.ram is not None:
        assert plan.memory[0].used <= budget.ram


@settings(deadline=None, max_examples=PLANS, suppress_health_check=list(HealthCheck))
@given(specs(), hardwares(), BUDGETS, STRATEGIES)
def test_no_plan_asks_for_more_than_is_free(spec, hardware, budget, strategy) -> None:
    check(place(spec, hardware, budget, strategy), spec, hardware, budget)


@QUICK
@given(specs(), hardwares(), BUDGETS, STRATEGIES)
def test_the_same_question_has_the_same_answer(spec, hardware, budget, strategy) -> None:
    assert place(spec, hardware, budget, strategy) == place(spec, hardware, budget, strategy)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b", "opt-30b", "qwen3-30b-a3b", "gpt-oss-20b"])
@pytest.mark.parametrize("strategy", ["hetegen", "stream", "cpu", "serial"])
def test_published_models_on_plausible_machines(machine, name, strategy) -> None:
    check(place(model(name), MACHINES[machine], Budget(), strategy), model(name), MACHINES[machine], Budget())


def test_memory_that_card_and_processor_share_is_counted_once() -> None:
    own = DESKTOP.gpus[0]
    card = replace(own, vram_total=24 * GIB, vram_free=20 * GIB, unified=True)
    plan = place(model("llama-3.1-8b"), replace(DESKTOP, gpus=(card,)), Budget(format="bf16"))
    assert plan.fits == "yes"
    assert sum(memory.used for memory in plan.memory) <= DESKTOP.cpu.ram_free
    apart = place(model("llama-3.1-8b"), replace(DESKTOP, gpus=(replace(card, unified=False),)), Budget(format="bf16"))
    assert sum(memory.used for memory in apart.memory) > DESKTOP.cpu.ram_free


def shared(speed: float, **more: float) -> Hardware:
    """Return a desktop whose graphics shares the memory, reads weights there, and is `speed` times as fast."""
    rates = tuple(rate.scaled(speed) for rate in DESKTOP.cpu.rates)
    card = replace(
        DESKTOP.gpus[0], vram_total=24 * GIB, vram_free=22 * GIB, unified=True, in_place=True, rates=rates,
        launch_s=0.0, layer_s=0.0, cpu_under_copy=1.0, link_under_cpu=1.0, **more,
    )  # fmt: skip
    return replace(DESKTOP, cpu=replace(DESKTOP.cpu, ram_total=24 * GIB, ram_free=22 * GIB), gpus=(card,))


def share_on_card(plan: Plan) -> float:
    return sum(linear.resident for linear in plan.linears) / sum(linear.rows for linear in plan.linears)


def test_weights_that_a_card_reads_in_place_lie_in_memory_once() -> None:
    """16 GB of weights for a computer with 22 GiB free: there is no room for a second copy of any of them."""
    spec, machine = model("llama-3.1-8b"), shared(10)
    ours = place(spec, machine, Budget(format="bf16", context=2048))
    assert ours.in_place
    assert ours.fits == "yes"
    assert not ours.from_disk
    assert share_on_card(ours) > 0.8
    assert ours.memory[0].weights == spec.weight_bytes("bf16")
    assert ours.memory[1].weights == spec.resident_bytes
    assert any("without copies" in line for line in explain(ours, spec, machine))
    copying = replace(machine, gpus=(replace(machine.gpus[0], in_place=False),))
    apart = place(spec, copying, Budget(format="bf16", context=2048))
    smaller = replace(machine, cpu=replace(machine.cpu, ram_free=12 * GIB))
    assert place(spec, smaller, Budget(format="bf16", context=2048)).from_disk
    assert apart.memory[1].weights > 10 * GIB


@pytest.mark.parametrize(("speed", "share"), [(1, 0.5), (3, 0.75), (1 / 3, 0.25)])
def test_the_shares_of_a_card_that_reads_in_place_follow_its_speed(speed: float, share: float) -> None:
    plan = place(model("llama-3.1-8b"), shared(speed), Budget(format="bf16", context=2048))
    assert share_on_card(plan) == pytest.approx(share, abs=0.1)


def test_engines_that_slow_each_other_down_are_not_expected_to_add_up() -> None:
    """A memory that either of them can use up alone is not faster for both."""
    spec, budget = model("llama-3.1-8b"), Budget(format="bf16", context=2048)
    alone = place(spec, replace(shared(1), gpus=()), budget).decode.likely
    assert place(spec, shared(1), budget).decode.likely > 1.7 * alone
    assert place(spec, shared(1, cpu_beside=0.5, gpu_beside=0.5), budget).decode.likely < 1.1 * alone


def reply_s(plan: Plan) -> float:
    return 256 / plan.decode.likely + 512 / plan.prefill.likely


@pytest.mark.parametrize("hardware", [DESKTOP, A10, machines.simulated(24 * GIB, 6e9)])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "opt-13b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("format", FORMATS)
def test_more_memory_is_never_slower(hardware, name, format) -> None:
    """For cards that nobody requested: one that was asked for is used for everything that fits."""
    gpu = replace(hardware.gpus[0], vram_total=24 * GIB, vram_free=24 * GIB, requested=False)
    machine = replace(hardware, gpus=(gpu,), cpu=replace(hardware.cpu, ram_total=256 * GIB, ram_free=200 * GIB))
    times = [
        reply_s(place(model(name), machine, Budget(vram=int(size * GIB), context=2048, format=format)))
        for size in (0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 20, 23)
    ]
    for less, more in pairwise(times):
        assert more <= less * 1.03, times


def test_a_card_that_was_asked_for_is_used_and_the_cost_of_that_is_said() -> None:
    """A simulated card on the CPU's own cores, which has room for everything: the CPU alone is faster."""
    spec, machine = model("llama-3.2-1b"), machines.simulated(24 * GIB, 6e9)
    budget = Budget(context=2048, format="int8")
    ours, card = place(spec, machine, budget), machine.gpus[0]
    assert all(linear.resident == linear.rows for linear in ours.linears)
    said = [line for line in explain(ours, spec, machine) if line.startswith("Not using the card")]
    free = replace(machine, gpus=(replace(card, requested=False),))
    best = place(spec, free, budget)
    assert reply_s(best) < reply_s(ours)
    assert not any(line.startswith("Not using the card") for line in explain(best, spec, free))
    assert len(said) == 1
    assert best.gpu >= 0 or "expected to be faster alone" in best.reason


def test_the_shares_obey_the_strategy() -> None:
    spec, budget = model("llama-3.1-8b"), Budget(format="bf16")
    for strategy in ("stream", "serial"):
        assert all(linear.decode.cpu == 0 for linear in place(spec, DESKTOP, budget, strategy).linears)
    on_cpu = place(spec, DESKTOP, budget, "cpu")
    assert all(rows.streamed == 0 for linear in on_cpu.linears for rows in linear.shares)
    assert on_cpu.ring.total == 0
    both = place(spec, DESKTOP, budget)
    assert sum(linear.decode.streamed for linear in both.linears) > 0
    assert sum(linear.decode.cpu for linear in both.linears) > 0


def test_streaming_fills_the_card_even_where_the_processor_is_as_fast() -> None:
    machine = machines.simulated(GIB, 2e9)
    card = machine.gpus[0]
    machine = replace(machine, gpus=(replace(card, launch_s=1e-3, link=replace(card.link, sync_s=1e-6)),))
    for strategy in ("stream", "serial"):
        memory = place(model("llama-3.2-1b"), machine, Budget(format="bf16", context=1024), strategy).memory[-1]
        assert memory.used > 0.95 * GIB


def test_staging_buffers_suit_the_link() -> None:
    """Slow links get buffers that do not occupy the card for long; fast ones get buffers worth their fixed cost."""

    def buffer(link: float) -> int:
        plan = place(
            model("llama-3.1-8b"), machines.simulated(2 * GIB, link), Budget(format="int8", context=1024), "stream"
        )
        return plan.ring.bytes

    assert buffer(1e9) == 2 * MIB
    assert buffer(12e9) == 8 * MIB
    assert buffer(60e9) == 8 * MIB


def test_working_together_is_predicted_to_beat_each_alone() -> None:
    rates = {
        strategy: place(model("opt-30b"), A10, Budget(format="bf16"), strategy).decode.likely
        for strategy in ("hetegen", "stream", "cpu", "serial")
    }
    assert rates["hetegen"] > max(rates["stream"], rates["cpu"])
    assert rates["stream"] > rates["serial"]


def test_alpha_is_the_papers_where_nothing_is_resident_and_nothing_interferes() -> None:
    """alpha = V_gpu V_com / (V_cpu V_gpu + V_cpu V_com + V_com V_gpu), for a V_gpu so large that it does not count."""
    card = replace(
        DESKTOP.gpus[0], cpu_under_copy=1.0, link_under_cpu=1.0, bytes_s=1e15, flops=1e18, launch_s=0.0,
        layer_s=0.0, link=Link(20e9, 20e9, 1e15, 1e15, 20e9, sync_s=0.0, back_s=0.0, piece_s=0.0),
    )  # fmt: skip
    machine = replace(DESKTOP, gpus=(card,), cpu=replace(DESKTOP.cpu, call_s=0.0, layer_s=0.0))
    linears = tuple(LinearSpec(f"{n}", 16384, 4096, n, n) for n in range(32))
    spec = ModelSpec("even", "Even", 32, 4096, 100, 2048, linears, (), 0, 0, "", head_tied=False)
    plan = place(spec, machine, Budget(vram=300 * MIB, format="bf16", context=512))
    streamed = sum(linear.decode.streamed for linear in plan.linears)
    alpha = streamed / sum(linear.decode.streamed + linear.decode.cpu for linear in plan.linears)
    assert alpha == pytest.approx(20e9 / (20e9 + 0.6 * 60e9), abs=0.02)


def slow_card(vram: int) -> Hardware:
    """Return a card that computes exactly as fast as the CPU."""
    card = replace(
        DESKTOP.gpus[0], vram_total=vram, vram_free=vram, rates=DESKTOP.cpu.rates, bytes_s=DESKTOP.cpu.read_bytes_s,
        cpu_under_copy=1.0, link_under_cpu=1.0,
    )  # fmt: skip
    return replace(DESKTOP, gpus=(card,))


def test_a_card_no_faster_than_the_cpu_computes_half_of_the_rows() -> None:
    """In decode the resident half, as both work concurrently; in prefill half of all rows."""
    spec = model("llama-3.1-8b")
    plan = place(spec, slow_card(8 * GIB), Budget(format="int8"))
    rows = sum(linear.rows for linear in plan.linears)
    assert 0.4 < sum(linear.resident for linear in plan.linears) / rows < 0.6
    alone = place(spec, replace(DESKTOP, gpus=()), Budget(format="int8"))
    assert plan.decode.likely > 1.6 * alone.decode.likely
    little = place(spec, slow_card(4 * GIB), Budget(format="int8"))
    on_card = sum(linear.prefill.resident + linear.prefill.streamed for linear in little.linears)
    assert 0.4 < on_card / rows < 0.6


def test_layers_are_given_to_one_side_where_visits_are_dear() -> None:
    """A token that is exchanged for every linear pays each time; entire layers on the CPU pay once for all."""

    def plan(sync_s: float) -> Plan:
        card = replace(DESKTOP.gpus[0], layer_s=sync_s, link=replace(DESKTOP.gpus[0].link, sync_s=sync_s))
        machine = replace(DESKTOP, gpus=(card,))
        return place(model("llama-3.1-8b"), machine, Budget(format="int8", vram=4 * GIB))

    cheap, dear = plan(5e-6), plan(1e-3)
    assert not cheap.host_layers
    spec = model("llama-3.1-8b")
    assert dear.host_layers == tuple(range(spec.layers - len(dear.host_layers), spec.layers))
    on_card = spec.layers - len(dear.host_layers)
    assert 0 < on_card < spec.layers
    assert all(linear.prefill.streamed for linear in dear.linears if linear.name.startswith(f"model.layers.{on_card}."))
    assert any("computed by the processor alone" in line for line in explain(dear, spec, DESKTOP))


@pytest.mark.parametrize(("name", "format", "layers"), [("llama-3.1-8b", "int8", 32), ("qwen3-30b-a3b", "int4", 48)])
def test_a_card_that_only_reads_prompts_is_said_to(name, format, layers) -> None:
    card = replace(DESKTOP.gpus[0], layer_s=1e-2, link=Link(3e9, 2e9, 3e9, 2e9, 3e9))
    plan = place(model(name), replace(DESKTOP, gpus=(card,)), Budget(format=format, vram=700 * MIB))
    assert len(plan.host_layers) == layers
    assert not any(linear.resident for linear in plan.linears)
    assert plan.reason.endswith("the graphics card helps to read prompts.")


def test_decode_leans_on_the_cpu_and_prefill_on_the_card() -> None:
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget(format="bf16"))
    decode = sum(linear.decode.streamed for linear in plan.linears)
    prefill = sum(linear.prefill.streamed for linear in plan.linears)
    assert prefill > 2 * decode


def test_what_pays_most_per_byte_becomes_resident_first() -> None:
    """Attention is read for each token, an expert only for some."""
    spec = model("qwen3-30b-a3b")
    plan = place(spec, DESKTOP, Budget(format="int4"))
    dense = [p.resident / p.rows for p, made in zip(plan.linears, spec.linears, strict=True) if made.experts is None]
    fused = [
        p.resident / p.rows for p, made in zip(plan.linears, spec.linears, strict=True) if made.experts is not None
    ]
    assert min(dense) > 0.99
    assert 0 < sum(fused) / len(fused) < 0.9


def test_experts_are_streamed_where_many_tokens_use_nearly_all_of_them() -> None:
    plan = place(model("gpt-oss-20b"), DESKTOP, Budget(format="int8"))
    fused = [linear for linear in plan.linears if "gate_up" in linear.name]
    assert not any(linear.decode.streamed for linear in fused)
    assert sum(linear.prefill.streamed for linear in fused) > 0.5 * sum(linear.rows for linear in fused)


def test_dear_exchanges_keep_groups_whole() -> None:
    """If each exchange is expensive, linears are given to one side, and fewer of them are split."""

    def shared(sync_s: float) -> int:
        card = DESKTOP.gpus[0]
        machine = replace(DESKTOP, gpus=(replace(card, link=replace(card.link, sync_s=sync_s)),))
        plan = place(model("llama-3.1-8b"), machine, Budget(format="int8", vram=5 * GIB), "cpu")
        return sum(0 < linear.resident < linear.rows for linear in plan.linears)

    assert shared(2e-3) < shared(1e-6)


def test_a_gated_part_is_divided_alike_where_exchanges_cost() -> None:
    """Down is split by the columns that gate and up are by rows: two exchanges per layer become one."""

    def pairs(sync_s: float, **changes: object) -> int:
        card = DESKTOP.gpus[0]
        link = replace(card.link, sync_s=sync_s, back_s=sync_s / 2)
        machine = replace(DESKTOP, gpus=(replace(card, link=link, bytes_s=100e9),))
        spec = replace(model("llama-3.1-8b"), **changes)
        plan = place(spec, machine, Budget(format="int8", vram=5 * GIB), "cpu")
        alone = replace(spec, linears=tuple(replace(one, after=-1) for one in spec.linears))
        assert plan.decode.likely >= place(alone, machine, Budget(format="int8", vram=5 * GIB), "cpu").decode.likely
        return sum(linear.by_columns and not linear.heads for linear in plan.linears)

    assert pairs(50e-6) == 32
    reordered = [replace(one, stored="int4g128w") for one in model("llama-3.1-8b").linears]
    assert pairs(50e-6, linears=tuple(reordered)) == 0, "columns may lie in an order of their own"


def test_attention_is_divided_by_heads_where_exchanges_cost() -> None:
    """Queries, keys, values and output take one exchange, and the KV cache lies in both memories."""

    def by_heads(sync_s: float, **changes: object) -> set[int]:
        card = DESKTOP.gpus[0]
        link = replace(card.link, sync_s=sync_s, back_s=sync_s / 2)
        machine = replace(DESKTOP, gpus=(replace(card, link=link, bytes_s=100e9),))
        spec = replace(model("llama-3.1-8b"), **changes)
        budget = Budget(format="int8", vram=5 * GIB, context=16384)
        plan = place(spec, machine, budget, "cpu")
        apart = machines.without_heads(spec)
        assert plan.decode.likely >= place(apart, machine, budget, "cpu").decode.likely
        check(plan, spec, machine, budget)
        return {linear.heads for linear in plan.linears} - {0}

    assert by_heads(200e-6)
    states = tuple(replace(layer, state_bytes=1) for layer in model("llama-3.1-8b").kv_layers)
    assert not by_heads(200e-6, kv_layers=states), "recurrent states have no heads to divide"


def test_linears_of_one_group_are_divided_alike() -> None:
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget(format="bf16"))
    by_name = plan.by_name
    for layer in (0, 15, 31):
        parts = [by_name[f"model.layers.{layer}.self_attn.{name}"] for name in ("q", "k", "v")]
        shares = [part.decode.cpu / part.rows for part in parts]
        assert max(shares) - min(shares) < 2 * 16 / 1024


def test_without_a_card_everything_is_the_cpus() -> None:
    plan = place(model("llama-3.2-1b"), LAPTOP, Budget())
    assert plan.gpu == -1
    assert [memory.device for memory in plan.memory] == ["cpu"]
    assert plan.ring.total == 0
    assert "no graphics card" in plan.reason


def test_a_model_that_fits_is_wholly_resident() -> None:
    plan = place(model("opt-6.7b"), A10, Budget())
    assert all(linear.resident == linear.rows for linear in plan.linears)
    assert plan.gpu == 0
    assert plan.ring.total == 0


def test_the_better_of_two_cards_is_used() -> None:
    small, large = TWO_CARDS.gpus
    for cards in ((small, large), (large, small)):
        plan = place(model("llama-3.1-8b"), replace(TWO_CARDS, gpus=cards), Budget())
        assert plan.gpu == large.index
        assert {linear.gpu for linear in plan.linears} == {large.index}
        assert plan.memory[-1].device == f"cuda:{large.index}"


def test_a_card_whose_memory_others_hold_is_the_worse_one() -> None:
    small, large = TWO_CARDS.gpus
    cards = (small, replace(large, vram_free=2 * GIB))
    assert place(model("llama-3.1-8b"), replace(TWO_CARDS, gpus=cards), Budget()).gpu == small.index


def test_of_two_cards_alike_the_one_with_the_faster_link_is_used() -> None:
    first = TWO_CARDS.gpus[0]
    fast = replace(first, index=1, link=replace(first.link, h2d_pinned=25e9, staged=22e9))
    assert place(model("llama-3.1-8b"), replace(TWO_CARDS, gpus=(first, fast)), Budget(format="bf16")).gpu == 1


def test_auto_takes_the_most_exact_format_that_is_usable() -> None:
    assert place(model("llama-3.2-1b"), LAPTOP, Budget()).format == "bf16"
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget())
    assert plan.format == "int8"
    assert plan.decode.likely >= 6
    assert "tokens per second" in plan.reasons[0]
    assert place(model("llama-3.1-8b"), LAPTOP, Budget()).format == "int4"


def test_the_format_asked_for_is_kept() -> None:
    for format in FORMATS:
        assert place(model("llama-3.2-1b"), LAPTOP, Budget(format=format)).format == format


def test_stored_weights_larger_than_ram_are_read_from_the_disk() -> None:
    hardware = replace(LAPTOP, disk_bytes_s=3e9)
    plan = place(model("llama-3.1-8b"), hardware, Budget(format="bf16"))
    assert plan.fits == "slow"
    assert plan.mapped
    assert plan.from_disk > 0
    assert plan.decode_times.disk == pytest.approx(plan.from_disk / 3e9)
    assert "disk" in plan.reason


def test_too_big_is_told_apart_from_busy() -> None:
    big = place(model("opt-30b"), LAPTOP, Budget())
    assert big.fits == "no"
    assert "too big for this computer" in big.reason
    busy = replace(LAPTOP, cpu=replace(LAPTOP.cpu, ram_free=2 * GIB))
    plan = place(model("llama-3.1-8b"), busy, Budget())
    assert plan.fits == "no"
    assert "Other programs" in plan.reason


def test_a_card_that_is_full_is_left_alone() -> None:
    full = replace(DESKTOP, gpus=(replace(DESKTOP.gpus[0], vram_free=900 * MIB),))
    plan = place(model("llama-3.1-8b"), full, Budget())
    assert plan.gpu == -1
    assert "too little free memory" in plan.reason


def test_the_cap_counts_on_simulated_cards_and_no_margin() -> None:
    plan = place(model("llama-3.2-1b"), machines.simulated(GIB, 6e9), Budget(format="bf16"))
    memory = plan.memory[-1]
    assert memory.margin == 0
    assert 0.8 * GIB < memory.used <= GIB


def test_real_cards_keep_a_margin() -> None:
    memory = place(model("llama-3.1-8b"), A10, Budget(format="bf16", context=2048)).memory[-1]
    assert memory.margin == 24 * GIB // 10
    assert memory.used <= memory.free_before - memory.margin


def test_the_head_is_divided_alike_in_all_phases() -> None:
    head = place(model("llama-3.1-8b"), DESKTOP, Budget(format="bf16")).by_name["lm_head"]
    assert len(set(head.shares)) == 1


def test_buckets_between_are_planned_too() -> None:
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget(format="bf16"))
    streamed = [sum(linear.shares[b].streamed for linear in plan.linears) for b in range(len(BUCKET_TOKENS))]
    assert streamed == sorted(streamed)


@pytest.mark.timed
def test_opt_30b_is_planned_in_a_fifth_of_a_second() -> None:
    """On a core of 3.7 GHz; one of 2.1 GHz takes a third."""
    spec = model("opt-30b")
    times = []
    for _ in range(5):
        start = time.thread_time()
        place(spec, A10, Budget())
        times.append(time.thread_time() - start)
    assert min(times) <= 0.2


def test_integrated_graphics_before_a_card_shorten_no_context() -> None:
    """As in most laptops with a card."""
    alone = replace(DESKTOP, cpu=replace(DESKTOP.cpu, ram_free=GIB))
    integrated = replace(DESKTOP.gpus[0], name="integrated", unified=True, vram_free=GIB)
    both = replace(alone, gpus=(integrated, replace(DESKTOP.gpus[0], index=1)))
    contexts = [place(model("llama-3.1-8b"), machine, Budget(format="int4")).context for machine in (alone, both)]
    assert contexts[0] == contexts[1] > 2048


def test_nearly_twice_the_context_fits_with_a_kv_cache_of_8_bits() -> None:
    spec = replace(model("llama-3.2-1b"), context_limit=1_000_000)
    memory = Budget(ram=4 * GIB, format="int8")

    def longest(budget: Budget) -> int:
        lengths = range(1024, 400_000, 1024)
        return lengths[bisect_left(lengths, True, key=lambda length: not fits(replace(budget, context=length))) - 1]

    def fits(budget: Budget) -> bool:
        plan = place(spec, LAPTOP, budget)
        assert plan.kv == budget.kv
        assert plan.memory[0].kv_cache == spec.with_kv(budget.kv).kv_bytes(plan.context)
        return plan.fits == "yes"

    exact, packed = longest(memory), longest(replace(memory, kv="int8"))
    assert 1.8 < packed / exact < 1.9
