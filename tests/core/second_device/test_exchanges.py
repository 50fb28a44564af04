"""Exchanges of experts on the second device, whose memory others still use."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from core.kernels.native_library import instruction_sets
from core.layers.expert_exchange import ExpertExchanges
from tests.core.layers.test_expert_cache import Reply, caches, half
from tests.core.second_device import SecondCard, SecondDevice

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")


def begun(exchanges: ExpertExchanges) -> Any:
    """Begin an exchange; return its buffers once the expert lies in pinned memory."""
    exchanges.step()
    lane = next(one for one in vars(exchanges)["_lanes"] if one.copy is not None)
    lane.copy.staged.result()
    return lane


def test_an_expert_replaces_another_whose_memory_is_still_used(
    second: SecondDevice, card: SecondCard, tmp_path: Path
) -> None:
    """As after passes that were stopped: nobody has waited for what they launched."""
    reply = Reply("qwen3_moe", tmp_path)
    placement, model = reply.placed(half(reply.spec), card)
    for cache in caches(model):
        cache.uses[torch.tensor([0, 1])], cache.uses[torch.tensor([2, 3])] = 0.0, 100.0
    exchanges = ExpertExchanges(caches(model), card)
    lane = begun(exchanges)
    cache, comes = lane.copy.cache, lane.copy.exchange.comes
    second.set(lag=0.002)
    for buffer in lane.spare:
        buffer.fill_(0)
    exchanges.step()
    card.synchronize()
    second.set(lag=0)
    exchanges.step()
    assert comes in cache.buffers
    assert list(reply.tokens(placement, model, [])) == reply.expected
    exchanges.close()
    placement.close()
    card.close()


def test_copies_have_ended_when_their_memory_is_freed(second: SecondDevice, card: SecondCard, tmp_path: Path) -> None:
    reply = Reply("qwen3_moe", tmp_path)
    placement, model = reply.placed(half(reply.spec), card)
    for cache in caches(model):
        cache.uses[torch.tensor([0, 1])], cache.uses[torch.tensor([2, 3])] = 0.0, 100.0
    exchanges = ExpertExchanges(caches(model), card)
    begun(exchanges)
    second.set(link=1e5)
    exchanges.step()
    exchanges.close()
    del exchanges
    gc.collect()
    second.set(link=0)
    assert not second.violation()
    placement.close()
    card.close()
