"""Split linears on the simulated device: the same tokens under any plan, budgets kept, changes during a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.accelerators.base import Accelerator
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.generation.generate import DrawnToken, generate
from core.kernels.autotune import KernelTable
from core.kernels.matmul import host_matmul
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.layers.kv_cache import KVCache
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import DevicePlacement, HostPlacement
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import Chunk, ParameterManager, chunks_of
from core.offload.shares import Role
from core.spec import (
    BUCKET_TOKENS,
    BytesPerToken,
    LinearPlan,
    ModelSpec,
    Plan,
    Prediction,
    Ring,
    Rows,
    Strategy,
    Times,
    cut_columns,
)  # fmt: skip
from tests.core.families import FAMILIES, VOCABULARY, make_model, reference_tokens, surveyed
from tests.core.second_device import cannot_build

TOKENS = 32
RATE = Prediction(1, 1, 1)
SECOND = "second"
LINK = "vram=64MiB,link=2GB/s"
CARD_BYTES = 34 << 20
CARD = "vram=34MiB,link=2GB/s,gpu=100GB/s"


def plan_of(
    spec: ModelSpec,
    shares: list[tuple[Rows, ...]],
    kv_on_device: bool,
    ring: Ring,
    strategy: Strategy = "hetegen",
    host_layers: tuple[int, ...] = (),
    *,
    paired: bool = False,
    heads: int = 0,
) -> Plan:
    """Return a plan that no planner would make, but that must work.

    `paired`: following linears are split by columns as the first one is by rows. `heads`: so many KV heads are on the
    device, 0 = attention is not divided by heads.
    """
    linears = tuple(
        LinearPlan(linear.name, linear.rows, (rows[0], rows[1], rows[2], rows[3]), 0, linear.group)
        for linear, rows in zip(spec.linears, shares, strict=True)
    )
    linears = tuple(pairs_of(spec, linears)) if paired else linears
    linears = tuple(by_heads(spec, linears, heads)) if heads else linears
    return Plan(
        model=spec.name, strategy=strategy, format="bf16", fits="yes", reason="", context=512,
        prefill_chunk=16, threads=1, gpu=0, linears=linears,
        kv_devices=tuple(0 if kv_on_device else -1 for _ in spec.kv_layers), host_layers=host_layers, ring=ring,
        memory=(), decode=RATE, prefill=RATE, confidence="guess",
        decode_times=Times(), check_s=(), prefill_times=Times(),
        bytes_per_token=BytesPerToken(), ideal_ms=1.0,
    )  # fmt: skip


def pairs_of(spec: ModelSpec, linears: tuple[LinearPlan, ...]) -> Iterator[LinearPlan]:
    """Yield all plans: following linears are split by columns where possible, and their groups alike."""
    first = {linear.group: linear for linear in reversed(linears)}
    following = [one for one in spec.linears if spec.can_follow(one, "bf16")]
    cut = {one.after: at_borders(first[one.after].shares, cut_columns(spec.storage(one, "bf16"))) for one in following}
    cut = {group: shares for group, shares in cut.items() if shares[0].resident < first[group].rows}
    for one, plan in zip(spec.linears, linears, strict=True):
        if one.after in cut:
            yield replace(plan, rows=one.columns, shares=cut[one.after], after=one.after)
        else:
            yield replace(plan, shares=cut[one.group]) if one.group in cut else plan


def by_heads(spec: ModelSpec, linears: tuple[LinearPlan, ...], heads: int) -> Iterator[LinearPlan]:
    """Yield all plans: so many KV heads are on the device in each layer, and the CPU has the others.

    For long prompts, some of their rows are streamed.
    """
    outputs = {one.attends: one for one in spec.linears if one.heads}
    for one, plan in zip(spec.linears, linears, strict=True):
        output = one if one.heads else outputs.get(one.group)
        if output is None:
            yield plan
            continue
        total, after = (one.columns, one.attends) if one.heads else (one.rows, -1)
        resident = total // output.heads * heads
        few = Rows(resident, 0, total - resident)
        some, many = (Rows(resident, away, total - resident - away) for away in (0, (total - resident) // 32 * 16))
        yield replace(plan, rows=total, shares=(few, few, some, many), after=after, heads=heads if one.heads else 0)


def at_borders(shares: tuple[Rows, Rows, Rows, Rows], every: int) -> tuple[Rows, Rows, Rows, Rows]:
    """Round the rows on the device down to multiples of `every`, unless the CPU has none."""

    def bordered(rows: Rows) -> Rows:
        count, resident = rows.resident + rows.streamed + rows.cpu, rows.resident // every * every
        there = (rows.resident + rows.streamed) // every * every if rows.cpu else count
        return Rows(resident, there - resident, count - there)

    one, few, some, many = map(bordered, shares)
    return one, few, some, many


@st.composite
def divisions(draw: st.DrawFn, rows: int) -> tuple[Rows, ...]:
    """Return uneven splits of one linear, with the same residents in every phase."""
    resident = draw(st.sampled_from((0, rows, draw(st.integers(0, rows)))))
    result = []
    for _ in BUCKET_TOKENS:
        streamed = draw(st.sampled_from((0, rows - resident, draw(st.integers(0, rows - resident)))))
        result.append(Rows(resident, streamed, rows - resident - streamed))
    return tuple(result)


@st.composite
def plans(draw: st.DrawFn, spec: ModelSpec) -> Plan:
    shares = [draw(divisions(linear.rows)) for linear in spec.linears]
    hosted = tuple(number for number in range(spec.layers) if draw(st.booleans()))
    for number, linear in enumerate(spec.linears):
        if linear.layer in hosted:
            alone, divided = Rows(0, 0, linear.rows), draw(st.integers(0, linear.rows))
            shares[number] = (alone, alone, *(Rows(0, divided, linear.rows - divided),) * 2)
    ring = Ring(draw(st.integers(1, 4)), draw(st.sampled_from((1024, 8192, 65536))), draw(st.integers(1, 3)))
    strategy = draw(st.sampled_from(("hetegen", "serial")))
    heads = draw(st.sampled_from((0, 1))) if spec.kv_heads("bf16") and not hosted else 0
    return plan_of(spec, shares, draw(st.booleans()), ring, strategy, hosted, paired=draw(st.booleans()), heads=heads)


class Bench:
    """One family's tiny model, loaded, with transformers' reply to a prompt."""

    def __init__(self, family: str, folder: Path, **changes: Any) -> None:
        make_model(family, folder, **changes)
        torch.manual_seed(1)
        self.prompt = torch.randint(3, VOCABULARY, (40,)).tolist()
        self.expected = reference_tokens(folder, self.prompt, TOKENS)
        self.folder = self.scratch = folder
        self.spec = surveyed(folder, family)
        self.kernels = KernelTable(1)

    def placed(self, plan: Plan, device: Accelerator) -> tuple[LanguageModel, DevicePlacement, KVCache]:
        """Return the model under a plan, and its empty cache."""
        source = open_source(self.folder)
        for _ in fill(source.module, source.weights):
            pass
        weights = HostWeights(source, self.spec, "bf16", self.kernels, self.scratch)
        for _ in weights.make():
            pass
        HostPlacement(source.module, weights)
        placement = DevicePlacement(source.module, weights, plan, device, self.spec.kv_layers)
        list(placement.apply(plan))
        return LanguageModel(source.module, placement), placement, placement.make_cache(source.module.config, plan)

    def run(self, first: Plan, second: Plan, device: Accelerator) -> list[int]:
        """Return the tokens under one plan that is replaced by another half-way."""
        model, placement, cache = self.placed(first, device)
        tokens: list[int] = []
        try:
            for step in generate(model, cache, self.prompt, lambda logits, _: int(logits.argmax()), bool, 16):
                if isinstance(step, DrawnToken):
                    tokens.append(step.id)
                    if len(tokens) == TOKENS // 2:
                        rearrange(model, cache, second)
                    if len(tokens) == TOKENS:
                        return tokens
        finally:
            placement.close()
            device.close()
        raise AssertionError("generation ended by itself")


def rearrange(model: LanguageModel, cache: KVCache, plan: Plan) -> None:
    """Change to another plan in the order of the engine: KV caches leave the device first and come to it last."""
    placement = model.placement
    assert isinstance(placement, DevicePlacement)
    there, home = placement.kv_places(plan), placement.kv_home(model.module.config)
    cache.retreat(there, home)
    list(placement.apply(plan))
    cache.move(there, home)


def halved(spec: ModelSpec, heads: int) -> Plan:
    """Return a plan with so many KV heads on the device, 0 = rows, and half of all other rows."""
    halves = [(Rows(one.rows // 2, 0, one.rows - one.rows // 2),) * len(BUCKET_TOKENS) for one in spec.linears]
    return plan_of(spec, halves, True, Ring(2, 32768), paired=True, heads=heads)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "gemma3_text", "opt", "gpt2", "mixtral", "falcon"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    assert request.param in FAMILIES
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_same_tokens_under_any_plan(bench: Bench, data: st.DataObject, request: pytest.FixtureRequest) -> None:
    first, second = data.draw(plans(bench.spec)), data.draw(plans(bench.spec))
    kind = data.draw(st.sampled_from((SECOND, LINK) if not cannot_build() else (LINK, f"{LINK},cores=1")))
    card = request.getfixturevalue("card") if kind == SECOND else SimulatedAccelerator(parse_simulation(kind))
    assert bench.run(first, second, card) == bench.expected


@pytest.mark.parametrize("buffers", [1, 3])
def test_streamed_experts_that_no_token_asks_for_are_skipped(tmp_path: Path, buffers: int) -> None:
    bench = Bench("qwen3_moe", tmp_path)
    streamed = [(Rows(0, linear.rows, 0),) * len(BUCKET_TOKENS) for linear in bench.spec.linears]
    plan = plan_of(bench.spec, streamed, True, Ring(buffers, 8192))
    assert bench.run(plan, plan, SimulatedAccelerator(parse_simulation(LINK))) == bench.expected


def test_the_whole_weight_can_be_had_on_the_device(tmp_path: Path) -> None:
    """Some families multiply by a linear's weight themselves."""
    bench = Bench("llama", tmp_path)
    source = open_source(tmp_path)
    for _ in fill(source.module, source.weights):
        pass
    expected = {name: one.weight.clone() for name, one in source.module.named_modules() if name.endswith("_proj")}
    weights = HostWeights(source, bench.spec, "bf16", KernelTable(1), tmp_path)
    for _ in weights.make():
        pass
    halves = [(Rows(one.rows // 2, 0, one.rows - one.rows // 2),) * len(BUCKET_TOKENS) for one in bench.spec.linears]
    device = SimulatedAccelerator(parse_simulation(LINK))
    plan = plan_of(bench.spec, halves, True, Ring())
    placement = DevicePlacement(source.module, weights, plan, device, bench.spec.kv_layers)
    list(placement.apply(plan))
    for name, weight in expected.items():
        assert torch.equal(source.module.get_submodule(name).weight, weight)
    placement.close()
    device.close()


def test_what_linears_share_comes_to_the_host_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split Llama layer copies down and up for q/k/v, o, gate/up and down, each once."""
    bench, device, counted = Bench("llama", tmp_path), SimulatedAccelerator(parse_simulation(LINK)), Counter[str]()
    for name in ("to_host", "to_device", "together_to_device"):
        own = getattr(device, name)
        monkeypatch.setattr(device, name, lambda x, name=name, own=own: counted.update([name]) or own(x))
    halves = [(Rows(one.rows // 2, 0, one.rows - one.rows // 2),) * len(BUCKET_TOKENS) for one in bench.spec.linears]
    plan, passes = plan_of(bench.spec, halves, True, Ring()), []
    own_pass = LanguageModel.forward
    monkeypatch.setattr(LanguageModel, "forward", lambda *args, **more: passes.append(1) or own_pass(*args, **more))
    assert bench.run(plan, plan, device) == bench.expected
    layers = bench.spec.layers
    assert counted["to_host"] == len(passes) * (4 * layers + 1)  # and the head's
    assert counted["together_to_device"] == len(passes) * (4 * layers + 1)
    assert counted["to_device"] == len(passes) * (4 * layers + 2)  # the same, and the embedded rows


def test_who_is_given_something_else_than_the_first_of_its_group_computes_alone() -> None:
    """Its streamed chunks were consumed with the first one, so the CPU has these rows."""
    device, weights = SimulatedAccelerator(parse_simulation(LINK)), [torch.randn(64, 32) for _ in range(3)]
    inputs, x, other = SharedInputs(device), torch.randn(2, 32), torch.randn(2, 32)
    group = [HeteroLinear(HostWeight(host_matmul(quantize(w, "bf16"))), None, device, inputs) for w in weights]
    for linear in group:
        linear.play(Role(group))
        linear.division = Rows(0, 0, 64)
    first = group[0](x)
    group[1].division, group[1].chunks = Rows(0, 40, 24), (Chunk("gone", 0, 40),)
    for linear, weight, read in zip(group, weights, (x, other, x), strict=True):
        found = first if linear is group[0] else linear(read)
        torch.testing.assert_close(found, read @ weight.T)
    device.close()


def test_neither_half_of_a_gated_part_leaves_its_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If down is split by the columns that gate and up are by rows: down and up for q/k/v, o, and all three."""
    bench, device, counted = Bench("llama", tmp_path), SimulatedAccelerator(parse_simulation(LINK)), Counter[str]()
    for name in ("to_host", "together_to_device"):
        own = getattr(device, name)
        monkeypatch.setattr(device, name, lambda x, name=name, own=own: counted.update([name]) or own(x))
    halves = [(Rows(one.rows // 2, 0, one.rows - one.rows // 2),) * len(BUCKET_TOKENS) for one in bench.spec.linears]
    plan, passes = plan_of(bench.spec, halves, True, Ring(), paired=True), []
    own_pass = LanguageModel.forward
    monkeypatch.setattr(LanguageModel, "forward", lambda *args, **more: passes.append(1) or own_pass(*args, **more))
    assert sum(linear.by_columns for linear in plan.linears) == bench.spec.layers
    assert bench.run(plan, plan, device) == bench.expected
    assert counted["to_host"] == len(passes) * (3 * bench.spec.layers + 1)
    assert counted["together_to_device"] == len(passes) * (3 * bench.spec.layers + 1)


def test_a_layer_exchanges_once_for_attention_and_once_for_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transfers down and two up per layer; and once for all layers the positions' sines and cosines."""
    bench, device, counted = Bench("llama", tmp_path), SimulatedAccelerator(parse_simulation(LINK)), Counter[str]()
    for name in ("to_host", "to_device"):
        own = getattr(device, name)
        monkeypatch.setattr(device, name, lambda x, name=name, own=own: counted.update([name]) or own(x))
    model, placement, cache = bench.placed(halved(bench.spec, 1), device)
    model.forward(bench.prompt, cache)
    for token, _ in enumerate(range(3), 5):
        counted.clear()
        model.forward([token], cache)
        once, layers = counted["to_host"] - 2 * bench.spec.layers, bench.spec.layers
        assert once == 4, "sine, cosine, positions, and the head's input"
        assert counted["to_device"] == 2 * layers + 2, "the head's results, and the embedded rows"
    placement.close()
    device.close()


@pytest.mark.parametrize(("lockable", "buffers", "starved"), [(4, 4, False), (3, 3, True), (2, 2, True), (1, 4, True)])
def test_a_ring_gets_by_with_the_memory_that_may_be_pinned(lockable: int, buffers: int, starved: bool) -> None:
    """First with fewer buffers; if not even two can be pinned, with pageable memory."""
    device = SimulatedAccelerator(parse_simulation(LINK))
    device.pin_limit = lockable << 20
    weight = HostWeight(host_matmul(QuantizedWeight("bf16", (4096, 512), torch.randn(4096, 512))))
    plan = LinearPlan("one", 4096, (Rows(0, 4096, 0),) * 4)
    ring = ParameterManager(device, Ring(4, 1 << 20), {"one": [weight]})
    assert ring.starved == starved
    assert ring.buffers == buffers
    chunks, seen = chunks_of(plan, 1, weight, 1 << 20), []
    ring.begin_pass(chunks)
    for chunk in chunks:
        device.settle()
        with ring.take(chunk) as rows:
            device.launch(lambda rows=rows: seen.append(rows.weight.data.clone()))
    device.settle()
    assert torch.equal(torch.cat(seen), weight.weight.data)
    ring.close()
    device.close()
