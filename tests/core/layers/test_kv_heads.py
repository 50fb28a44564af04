"""A KV cache divided by heads between a device's memory and RAM."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from core.layers.kv_cache import KVCache
from core.layers.kv_heads import ByHeads, DividedStates, less_on_device
from core.layers.kv_layers import PreallocatedLayer, SlidingLayer, on_host
from core.layers.kv_states import states_of
from tests.core.families import make_model


def states(first: int, count: int) -> Tensor:
    """Make states (1, 4, count, 2) that hold their token's position, and a tenth of it for each further head."""
    tokens = torch.arange(first, first + count).float().view(1, 1, count, 1)
    return (tokens + torch.arange(4).view(1, 4, 1, 1) / 10).expand(1, 4, count, 2)


def divided(heads: int) -> ByHeads:
    return ByHeads(on_host, heads)


@pytest.mark.parametrize("make", [PreallocatedLayer, lambda *args: SlidingLayer(6, *args)])
def test_a_divided_buffer_holds_what_a_whole_one_does(make: Any) -> None:
    one, other = make(64, on_host), make(64, divided(3))
    one.capacity = other.capacity = min(one.capacity, 12)
    length = 0
    for count, kept in [(5, 3), (4, 7), (1, 8), (2, 4)]:
        seen = [layer.update(states(length, count), -states(length, count)) for layer in (one, other)]
        assert isinstance(seen[1][0], DividedStates)
        assert seen[1][0].there.shape[1] == 3
        assert all(torch.equal(plain, parts.whole()) for plain, parts in zip(*seen, strict=True))
        length += count
        if one.can_keep(kept):
            assert other.can_keep(kept)
            one.keep(kept)
            other.keep(kept)
            length = min(kept, length)


def test_heads_move_between_memories_and_states_are_kept() -> None:
    layer = PreallocatedLayer(16, divided(1))
    layer.update(states(0, 5), -states(0, 5))
    for place in (divided(3), on_host, divided(2), divided(1)):
        layer.move(place)
        keys, values = layer.update(states(5, 1), -states(5, 1))
        assert torch.equal(torch.cat((keys,), 2), states(0, 6))
        assert torch.equal(torch.cat((values,), 2), -states(0, 6))
        layer.keep(5)


def test_before_weights_move_heads_only_leave_the_device() -> None:
    assert less_on_device(divided(1), divided(3)) == divided(1)
    assert less_on_device(divided(3), divided(1)) == divided(1)
    assert less_on_device(divided(3), on_host) == divided(3)
    assert less_on_device(on_host, divided(3)) == divided(3)


def test_states_are_saved_whole(tmp_path: Path) -> None:
    make_model("llama", tmp_path, num_key_value_heads=4)
    cache = KVCache(AutoConfig.from_pretrained(tmp_path), 32, dict.fromkeys(range(3), divided(1)))
    for layer in cache.layers:
        layer.update(states(0, 5), states(0, 5))
    assert cache.nbytes == 3 * 2 * 4 * 32 * 2 * 4
    for held in states_of(cache):
        saved = held.copied().tensors
        assert all(type(one) is Tensor and torch.equal(one, states(0, 5)) for one in saved.values())
