"""Whole experts on a device, changed during a reply: the same tokens whatever the placement, and correct counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.accelerators.base import Accelerator
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.generation.generate import DrawnToken, generate
from core.kernels.autotune import KernelTable
from core.kernels.matmul import host_matmul
from core.kernels.native_library import instruction_sets
from core.kernels.quantize import quantize
from core.layers import moe
from core.layers.expert_cache import ExpertCache
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import DevicePlacement, HostPlacement
from core.offload.host_weight import HostWeight
from core.spec import BUCKET_TOKENS, ExpertRates, KernelRate, ModelSpec, Plan, Ring, Rows, Strategy
from tests.core.families import make_model, reference_tokens, surveyed
from tests.core.greedy import random_prompt
from tests.core.layers.test_expert_families import round_weights
from tests.core.offload.test_hetero_linear import plan_of
from tests.core.second_device import cannot_build

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe", "deepseek_v3", "granitemoe", "llama4_text")
TOKENS = 32
CHUNK = 4
"""Prompt tokens per pass: with more rows, torch would multiply experts, and in bf16."""
LINK = "vram=64MiB,link=2GB/s"
FAST, SLOW = (KernelRate("bf16", rate, (rate,) * 4) for rate in (1e12, 1e6))
ALIKE, COPYING = ExpertRates(FAST, FAST, 1e-12), ExpertRates(SLOW, FAST, 1e-12)
"""Rates with which the work is split, and with which all experts that the device does not hold are copied."""


class Reply:
    """A tiny model whose experts are stored in bf16 and computed in fp32, with transformers' reply to a prompt."""

    def __init__(self, family: str, folder: Path) -> None:
        make_model(family, folder)
        round_weights(folder)
        self.folder = folder
        self.prompt = random_prompt(24)
        self.expected = reference_tokens(folder, self.prompt, TOKENS)
        self.spec = surveyed(folder, family)

    def placed(self, plan: Plan, device: Accelerator) -> tuple[DevicePlacement, LanguageModel]:
        source = open_source(self.folder)
        for _ in fill(source.module, source.weights):
            pass
        made = HostWeights(source, self.spec, "bf16", KernelTable(1), self.folder)
        for _ in made.make():
            pass
        weights = {linear.name: list(made[linear.name]) for linear in self.spec.linears}
        for linear in self.spec.linears:
            if linear.experts is not None:
                weights[linear.name] = [in_bf16(one) for one in weights[linear.name]]
        HostPlacement(source.module, weights)
        placement = DevicePlacement(source.module, weights, plan, device, self.spec.kv_layers)
        list(placement.apply(plan))
        return placement, LanguageModel(source.module, placement)

    def tokens(self, placement: DevicePlacement, model: LanguageModel, change: list[Plan]) -> Iterator[int]:
        """Return the tokens, decoded with another plan after every eight."""
        cache = placement.make_cache(model.module.config, placement.plan)
        drawn = 0
        for step in generate(model, cache, self.prompt, lambda logits, _: int(logits.argmax()), bool, CHUNK):
            if isinstance(step, DrawnToken):
                drawn += 1
                yield step.id
                if drawn == TOKENS:
                    return
                if drawn % 8 == 0 and change:
                    list(placement.apply(change.pop()))


def in_bf16(weight: HostWeight) -> HostWeight:
    return HostWeight(host_matmul(quantize(weight.weight.data.bfloat16(), "bf16")))


def some_experts(spec: ModelSpec, source: random.Random, *, streamed: bool = False) -> Plan:
    """Return a plan with room for some experts of each layer, including none or all of them."""
    room = {linear.layer: source.choice((0.0, 0.3, 0.5, 0.8, 1.0)) for linear in spec.linears}
    shares = []
    for linear in spec.linears:
        resident = int(linear.rows * (room[linear.layer] if linear.experts is not None else source.choice((0, 0.5, 1))))
        rest = linear.rows - resident
        moving = source.choice((0, rest)) if streamed else 0
        alone, many = Rows(resident, 0, rest), Rows(resident, moving, rest - moving)
        shares.append((alone, many, many, many))
    plan = plan_of(spec, shares, source.random() < 0.5, Ring(3, 8192) if streamed else Ring())
    return replace(plan, expert_rates=source.choice((None, ALIKE, COPYING)))


def caches(model: LanguageModel) -> list[ExpertCache]:
    found = [vars(module).get(moe.TOGETHER) for module in model.module.modules()]
    return [cache for cache in found if isinstance(cache, ExpertCache)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["link", "cores", "second"])
def test_random_placements_changed_in_mid_reply(
    family: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "second" and cannot_build():
        pytest.skip("the tests' device was not built")
    reply, source = Reply(family, tmp_path), random.Random(f"{family} {kind}")
    plans = [some_experts(reply.spec, source, streamed=kind != "second") for _ in range(4)]
    simulation = parse_simulation(f"{LINK},cores=1" if kind == "cores" else LINK)
    device = request.getfixturevalue("card") if kind == "second" else SimulatedAccelerator(simulation)
    placement, model = reply.placed(plans.pop(), device)
    try:
        assert list(reply.tokens(placement, model, plans)) == reply.expected
    finally:
        placement.close()
        device.close()


def half(spec: ModelSpec) -> Plan:
    shares = [(Rows(one.rows // 2, 0, one.rows - one.rows // 2),) * len(BUCKET_TOKENS) for one in spec.linears]
    return plan_of(spec, shares, True, Ring())


def test_the_most_used_come_in_place_of_others_while_the_reply_goes_on(tmp_path: Path) -> None:
    reply, device = Reply("qwen3_moe", tmp_path), SimulatedAccelerator(parse_simulation(LINK))
    placement, model = reply.placed(half(reply.spec), device)
    before = [set(cache.buffers) for cache in caches(model)]
    for cache in caches(model):
        cache.uses[torch.tensor([0, 1])], cache.uses[torch.tensor([2, 3])] = 0.0, 100.0
    found = []
    for token in reply.tokens(placement, model, []):
        found.append(token)
        device.synchronize()  # copies as small as these only start when somebody waits for them
    assert found == reply.expected
    assert placement.expert_use is not None
    assert placement.expert_use.replaced > 0
    for _ in range(100):
        device.synchronize()
        placement.end_pass()
    after, use = [set(cache.buffers) for cache in caches(model)], placement.expert_use
    assert all(held <= {0, 1} for held in before)
    assert all(held and held <= {2, 3} for held in after)
    assert use.held == sum(map(len, after)) == sum(map(len, before))
    assert use.replaced >= use.held
    layers, passes = len(caches(model)), len(reply.prompt) + TOKENS - 1
    assert use.hits + use.computed == layers * passes * 2
    assert use.hits > 0
    placement.close()
    assert device.memory().used == 0
    device.close()


@pytest.mark.parametrize(("strategy", "rates"), [("hetegen", COPYING), ("stream", ALIKE), ("serial", ALIKE)])
def test_what_is_not_there_is_copied_where_that_is_faster_or_asked_for(
    strategy: Strategy, rates: ExpertRates, tmp_path: Path
) -> None:
    reply, device = Reply("qwen3_moe", tmp_path), SimulatedAccelerator(parse_simulation(f"{LINK},cores=1"))
    plan = replace(half(reply.spec), strategy=strategy, expert_rates=rates, ring=Ring(8, 65536))
    placement, model = reply.placed(plan, device)
    assert list(reply.tokens(placement, model, [])) == reply.expected
    use = placement.expert_use
    assert use is not None
    assert use.copied > 0
    assert use.hits > 0
    assert use.hits + use.copied + use.computed == len(caches(model)) * (len(reply.prompt) + TOKENS - 1) * 2
    placement.close()
    assert device.memory().used == 0
    device.close()


def test_without_the_cache_tokens_are_the_same_and_all_is_computed(tmp_path: Path) -> None:
    reply, device = Reply("qwen3_moe", tmp_path), SimulatedAccelerator(parse_simulation(LINK))
    placement, model = reply.placed(half(reply.spec), device)
    own = placement.begin_pass

    def resting(tokens: int, **more: bool) -> None:
        own(tokens, **more)
        for cache in caches(model):
            cache.rests = True

    placement.begin_pass = resting  # type: ignore[method-assign]
    assert list(reply.tokens(placement, model, [])) == reply.expected
    use = placement.expert_use
    assert use is not None
    assert (use.hits, use.replaced) == (0, 0)
    assert use.computed > 0
    placement.close()
    device.close()


def test_what_was_used_is_recalled_and_comes_first(tmp_path: Path) -> None:
    reply, device = Reply("qwen3_moe", tmp_path), SimulatedAccelerator(parse_simulation(LINK))
    placement, model = reply.placed(half(reply.spec), device)
    uses = {path: [0.0, 1.0, 2.0, 9.0] for path in placement.expert_uses or named(model)}
    placement.recall_expert_uses({**uses, "of another model": [1.0]})
    for cache in caches(model):
        cache.shrink(0)
    list(placement.apply(half(reply.spec)))
    assert all(3 in cache.buffers for cache in caches(model) if cache.buffers)
    assert placement.expert_uses == uses
    placement.recall_expert_uses({path: [1.0] for path in uses})
    assert placement.expert_uses == uses
    placement.close()
    device.close()


def named(model: LanguageModel) -> list[str]:
    return [name for name, module in model.module.named_modules() if moe.TOGETHER in vars(module)]


def test_a_layer_asks_for_its_input_once_however_many_experts_the_cpu_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, device = Reply("qwen3_moe", tmp_path), SimulatedAccelerator(parse_simulation(LINK))
    none = [
        (Rows(0, 0, one.rows) if one.experts is not None else Rows(one.rows, 0, 0),) * 4 for one in reply.spec.linears
    ]
    placement, model = reply.placed(plan_of(reply.spec, none, True, Ring()), device)
    asked, own = [], device.to_host
    monkeypatch.setattr(device, "to_host", lambda tensor: asked.append(tensor.shape) or own(tensor))
    cache = placement.make_cache(model.module.config, placement.plan)
    model.forward(reply.prompt[:4], cache)
    asked.clear()
    model.forward(reply.prompt[4:5], cache)
    assert [shape for shape in asked if shape == (1, 64)] == [(1, 64)] * len(caches(model))
    placement.close()
    device.close()
