"""Tiny models on the second device under plans that allow graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from core.events import Prefill
from core.generation.generate import generate
from core.layers.kv_cache import KVCache
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import DevicePlacement, HostPlacement
from core.planning.capture import capturable
from core.spec import BUCKET_TOKENS, Format, ModelSpec, Plan, Ring, Rows
from tests.core.families import VOCABULARY
from tests.core.offload.test_hetero_linear import TOKENS, Bench, plan_of
from tests.core.second_device import SecondCard

ROOM = 1 << 30
"""Enough memory for any graphs."""
FEW_PLACES = {"gpt2": {"n_positions": 96}}
"""A table with a row for most tokens would be taken for one that is looked up in RAM."""


def whole(spec: ModelSpec, *, captured: bool = True) -> Plan:
    """Return a plan with everything on the card, and all layers captured or none."""
    shares = [(Rows(linear.rows, 0, 0),) * len(BUCKET_TOKENS) for linear in spec.linears]
    plan = plan_of(spec, shares, True, Ring())
    return replace(plan, captured=tuple(range(spec.layers)) if captured else (), graph_bytes=ROOM)


def divided(spec: ModelSpec, *layers: int, captured: bool = True) -> Plan:
    """Return a plan in which these layers and the output head are on both sides, and the others on the card."""
    shares = []
    for linear in spec.linears:
        third = linear.rows // 3 if linear.layer in (*layers, -1) else 0
        shares.append((Rows(linear.rows - 2 * third, third, third),) * len(BUCKET_TOKENS))
    plan = plan_of(spec, shares, True, Ring(2, 32768))
    return with_graphs(plan, spec) if captured else plan


def around(spec: ModelSpec, *, captured: bool = True, paired: bool = False) -> Plan:
    """Return a plan in which all linears except those of attention are on both sides."""
    shares = []
    for linear in spec.linears:
        third = 0 if "attn" in linear.part or "attention" in linear.part else linear.rows // 3
        shares.append((Rows(linear.rows - 2 * third, third, third),) * len(BUCKET_TOKENS))
    plan = plan_of(spec, shares, True, Ring(2, 32768), paired=paired)
    return with_graphs(plan, spec) if captured else plan


def with_graphs(plan: Plan, spec: ModelSpec) -> Plan:
    """Allow the plan to capture all that can be captured."""
    layers, gaps = capturable(plan, spec)
    return replace(plan, captured=layers, gaps=gaps, graph_bytes=ROOM)


class Placed:
    """A family's tiny model on the second device, with one KV cache."""

    def __init__(self, bench: Bench, card: SecondCard, plan: Plan, format: Format = "bf16") -> None:
        source = open_source(bench.folder)
        for _ in fill(source.module, source.weights):
            pass
        weights = HostWeights(source, bench.spec, format, bench.kernels, bench.scratch)
        for _ in weights.make():
            pass
        HostPlacement(source.module, weights)
        self.placement = DevicePlacement(source.module, weights, plan, card, bench.spec.kv_layers)
        list(self.placement.apply(plan))
        self.model = LanguageModel(source.module, self.placement)
        self.cache: KVCache = self.placement.make_cache(source.module.config, plan)

    def draw(self, prompt: list[int], count: int) -> Iterator[int]:
        """Decode greedily, token by token."""
        drawn = 0
        for step in generate(self.model, self.cache, prompt, lambda logits, _: int(logits.argmax()), bool, 16):
            if isinstance(step, Prefill):
                continue
            yield step.id
            if (drawn := drawn + 1) == count:
                return

    def close(self, card: SecondCard) -> None:
        self.placement.close()
        card.close()


def launches(bench: Bench, card: SecondCard, plan: Plan) -> list[int]:
    """Return how many launches each token of a reply takes, after the first."""
    placed, so_far = Placed(bench, card, plan), list[int]()
    for _ in placed.draw(bench.prompt, TOKENS):
        so_far.append(card.told.get("launches"))
    placed.close(card)
    return [after - before for before, after in itertools.pairwise(so_far)]


PLANS: dict[str, Callable[[ModelSpec, bool], Plan]] = {
    "whole": lambda spec, captured: whole(spec, captured=captured),
    "divided": lambda spec, captured: divided(spec, 1, captured=captured),
    "around": lambda spec, captured: around(spec, captured=captured),
}
LENDING = {
    "layer_types": ["sliding_attention", "full_attention"] * 3, "num_hidden_layers": 6, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "enable_moe_block": False,
}  # fmt: skip
"""A Gemma 4 whose last two layers read the states of the two before, as in E2B."""
GRAPHS = {"whole": 1, "divided": 2, "around": 4}
"""At least so many in a pass."""
