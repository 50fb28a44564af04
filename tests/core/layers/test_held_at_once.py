"""Experts held by a device, in one launch per product: the same tokens, and no expert computed by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.kernels.native_library import instruction_sets
from core.kernels.quantized_weight import QuantizedWeight
from core.layers.expert_cache import ExpertCache
from core.layers.held_at_once import Routed
from core.spec import BUCKET_TOKENS, ModelSpec, Plan, Ring, Rows
from tests.core.layers.test_expert_cache import TOKENS, Reply, caches, half, some_experts
from tests.core.offload.test_hetero_linear import plan_of
from tests.core.second_device import SecondCard

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")


class ListedByTorch:
    """The list kernel's computation in torch operations, on the tests' device."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []

    def entries(self, weights: Sequence[QuantizedWeight], counts: Sequence[int]) -> Tensor:
        firsts = [sum(counts[:at]) for at in range(len(counts))]
        places = [weight.data.data_ptr() for weight in weights]
        return torch.tensor(list(zip(places, firsts, counts, strict=True)))

    def products(self, weights: Sequence[QuantizedWeight], entries: Tensor, x: Tensor) -> Tensor:
        """Multiply by the list that was copied to the device, not by the order of the weights."""
        by_place = {weight.data.data_ptr(): weight for weight in weights}
        listed = entries.cpu().tolist()
        self.counts.append([count for _, _, count in listed])
        y = x.new_empty(len(x), weights[0].shape[0])
        for place, first, count in listed:
            rows = slice(first, first + count)
            y[rows] = torch.nn.functional.linear(x[rows], by_place[place].dequantize(x.dtype))
        return y


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> ListedByTorch:
    """Provide the tests' device with list products, for 16-bit weights that represent the model's numbers exactly."""
    found = ListedByTorch()

    monkeypatch.setattr(SecondCard, "listed", lambda card, storage: found)
    return found


def most(spec: ModelSpec) -> Plan:
    """Make room for three of four experts per layer, of which the spare buffers of exchanges take three in total."""
    shares = [(Rows(one.rows * 3 // 4, 0, one.rows - one.rows * 3 // 4),) * len(BUCKET_TOKENS) for one in spec.linears]
    return plan_of(spec, shares, True, Ring())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_same_tokens_with_experts_changed_in_mid_reply(
    family: str, tmp_path: Path, card: SecondCard, listed: ListedByTorch
) -> None:
    reply, source = Reply(family, tmp_path), random.Random(family)
    plans = [most(reply.spec), *(some_experts(reply.spec, source) for _ in range(3))]
    placement, model = reply.placed(most(reply.spec), card)
    assert list(reply.tokens(placement, model, plans)) == reply.expected
    assert max(map(len, listed.counts)) > 1
    assert max(map(max, listed.counts)) > 1  # an expert that several prompt tokens chose
    placement.close()
    card.close()


def test_all_that_is_held_is_two_launches_and_what_is_replaced_counts(
    tmp_path: Path, card: SecondCard, listed: ListedByTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are exchanged during the reply; none is computed by itself."""
    monkeypatch.setattr(ExpertCache, "launch_each", None)
    reply = Reply("qwen3_moe", tmp_path)
    placement, model = reply.placed(half(reply.spec), card)
    for cache in caches(model):
        cache.uses[torch.tensor([0, 1])], cache.uses[torch.tensor([2, 3])] = 0.0, 100.0
    found = []
    for token in reply.tokens(placement, model, []):
        found.append(token)
        card.synchronize()
    use = placement.expert_use
    assert found == reply.expected
    assert use is not None
    assert use.replaced > 0
    assert use.hits > 0
    assert 2 * use.hits == sum(map(sum, listed.counts))
    assert len(listed.counts) <= 2 * len(caches(model)) * (len(reply.prompt) + TOKENS)
    placement.close()
    card.close()


def test_experts_that_many_tokens_need_are_computed_by_themselves(
    tmp_path: Path, card: SecondCard, listed: ListedByTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    own = ExpertCache.launch_each

    def each(self: ExpertCache, experts: Sequence[int], routed: Routed) -> None:
        asked.extend(experts)
        own(self, experts, routed)

    monkeypatch.setattr(ExpertCache, "launch_each", each)
    reply = Reply("mixtral", tmp_path)
    placement, model = reply.placed(most(reply.spec), card)
    held = max(caches(model), key=lambda cache: len(cache.buffers))
    often, seldom = sorted(held.buffers)[:2]
    x = torch.randn(20, held.linears[0][0].host.columns)
    chosen = torch.tensor([[often, seldom if row < 3 else len(held.uses)] for row in range(20)])
    given = [card.to_device(one) for one in (x, chosen, torch.rand(20, 2))]
    many = held(*given).cpu()
    assert asked == [often]
    assert [3] in listed.counts
    held.at_once = None
    assert torch.allclose(held(*given).cpu(), many, rtol=1e-4, atol=1e-5)
    placement.close()
    card.close()


def test_a_layer_of_which_nothing_is_held_launches_nothing(
    tmp_path: Path, card: SecondCard, listed: ListedByTorch
) -> None:
    reply = Reply("qwen3_moe", tmp_path)
    none = [
        (Rows(0, 0, one.rows) if one.experts is not None else Rows(one.rows, 0, 0),) * 4 for one in reply.spec.linears
    ]
    placement, model = reply.placed(plan_of(reply.spec, none, True, Ring()), card)
    assert list(reply.tokens(placement, model, [])) == reply.expected
    assert not listed.counts
    placement.close()
    card.close()
