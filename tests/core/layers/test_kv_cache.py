from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, MistralConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.errors import NotEnoughMemory
from core.layers.kv_cache import KVCache, common_prefix
from core.layers.kv_layers import SLIDING_SLACK, PreallocatedLayer, SlidingLayer, on_host
from core.spec import SNAPSHOTS
from tests.core.families import FAMILIES, RARER_FAMILIES


def states(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Make keys (1, 2, count, 4) that hold their token's position, and values that hold its negative."""
    keys = torch.arange(first, first + count).float().view(1, 1, count, 1).expand(1, 2, count, 4)
    return keys, -keys[..., :3]


def places(keys: Tensor) -> list[int]:
    return [int(place) for place in keys[0, 0, :, 0]]


@pytest.mark.parametrize(
    ("left", "right", "length"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1)]
)
def test_common_prefix(left: list[int], right: list[int], length: int) -> None:
    assert common_prefix(left, right) == length


def test_full_attention_sees_every_token_in_one_buffer() -> None:
    layer = PreallocatedLayer(10)
    layer.update(*states(0, 4))
    buffer = layer.keys.data_ptr()
    keys, values = layer.update(*states(4, 1))
    assert places(keys) == [0, 1, 2, 3, 4]
    assert torch.equal(values, -keys[..., :3])
    assert keys.data_ptr() == buffer, "nothing was copied"
    assert layer.get_mask_sizes(3) == (8, 0)
    layer.keep(2)
    assert places(layer.update(*states(50, 1))[0]) == [0, 1, 50]


@given(st.lists(st.one_of(st.integers(1, 9), st.integers(-40, -1)), max_size=40))
def test_sliding_attention_sees_what_the_window_reaches(steps: list[int]) -> None:
    """Positive: append so many tokens; negative: rewind by so many, if possible."""
    window, slack = 6, 5
    layer = SlidingLayer(window, 1000)
    layer.capacity = window + slack
    length = 0
    for step in steps:
        if step < 0:
            kept = max(length + step, 0)
            if layer.can_keep(kept):
                layer.keep(kept)
                length = kept
            continue
        size, first = layer.get_mask_sizes(step)
        keys, values = layer.update(*states(length, step))
        length += step
        assert places(keys) == list(range(max(length - step - window + 1, 0), length))
        assert torch.equal(values, -keys[..., :3])
        assert (size, first) == (len(places(keys)), places(keys)[0])


def test_sliding_attention_takes_little_memory() -> None:
    config = MistralConfig(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1, sliding_window=16
    )
    cache = KVCache(config, 100_000)
    cache.layers[0].update(*states(0, 1))
    assert cache.nbytes == (16 + SLIDING_SLACK) * 2 * (4 + 3) * 4


@pytest.fixture
def cache() -> KVCache:
    cache = KVCache(LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2), 32)
    for layer in cache.layers:
        layer.update(*states(0, 6))
    cache.tokens = [10, 11, 12, 13, 14, 15]
    return cache


def test_reuse_keeps_the_common_prefix(cache: KVCache) -> None:
    assert cache.reuse([10, 11, 12, 99, 98]) == 3
    assert cache.tokens == [10, 11, 12]
    assert [layer.length for layer in cache.layers] == [3, 3]


def test_reuse_leaves_a_token_to_compute(cache: KVCache) -> None:
    assert cache.reuse([10, 11, 12]) == 2


def test_reuse_of_nothing_starts_anew(cache: KVCache) -> None:
    assert cache.reuse([1, 2]) == 0
    assert cache.tokens == []
    assert [layer.length for layer in cache.layers] == [0, 0]


def test_a_pass_broken_off_half_way_is_undone(cache: KVCache) -> None:
    cache.layers[0].update(*states(6, 4))
    assert cache.restore(6) == 6
    assert [layer.length for layer in cache.layers] == [6, 6]


@pytest.mark.parametrize(
    ("family", "rewinds", "in_parts"),
    [("llama", True, True), ("mistral", True, True), ("gemma3_text", True, True), ("qwen3_next", False, True)],
)
def test_what_each_kind_of_cache_can_do(family: str, rewinds: bool, in_parts: bool) -> None:
    cache = KVCache(CONFIG_MAPPING[family](**FAMILIES[family]), 64)
    assert (cache.can_rewind, cache.reads_in_parts) == (rewinds, in_parts)


def test_an_unknown_recurrent_family_is_read_in_one_pass() -> None:
    cache = KVCache(CONFIG_MAPPING["jamba"](num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1), 64)
    assert not cache.reads_in_parts
    cache.tokens = [1, 2, 3]
    assert cache.reuse([1, 2, 3, 4, 5]) == 0
    cache.tokens = [1, 2, 3]
    assert cache.reuse([1, 2, 3, 4]) == 3, "one token more is what its layers can do"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_was_read_comes_along_when_layers_lie_elsewhere(family: str) -> None:
    """Also after a sliding layer's buffer has been moved up, and after a rewind."""
    allocated: list[int] = []

    def elsewhere(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        allocated.append(1)
        return torch.full(tuple(shape), torch.nan, dtype=dtype)

    config = CONFIG_MAPPING[family](**FAMILIES[family])
    stayed, moved = KVCache(config, 3000), KVCache(config, 3000)
    at = 0
    for step, (count, places_of) in enumerate(((40, {1: elsewhere}), (1500, {}), (7, {0: elsewhere, 1: elsewhere}))):
        for layer in range(len(moved.layers)):
            found = [cache.update(*states(at, count), layer) for cache in (stayed, moved)]
            assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), step
        at += count
        moved.move(places_of)
        assert moved.away == places_of.keys()
    assert len(allocated) == 2 * 3
    for layer in range(len(moved.layers)):
        found = [cache.update(*states(at, 3), layer) for cache in (stayed, moved)]
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_layer_that_finds_no_room_stays_where_it_was() -> None:
    def full(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        raise NotEnoughMemory("Full.", "", "", device="card")

    layer = PreallocatedLayer(10)
    layer.update(*states(0, 4))
    with pytest.raises(NotEnoughMemory):
        layer.move(full)
    assert places(layer.update(*states(4, 1))[0]) == [0, 1, 2, 3, 4]
    assert layer.allocate is on_host


@pytest.fixture
def recurrent() -> KVCache:
    """Make the cache of a model with convolutions and full attention; its states hold the number of tokens read."""
    cache = KVCache(CONFIG_MAPPING["lfm2"](**RARER_FAMILIES["lfm2"]), 64)
    cache.update_conv_state(torch.zeros(1, 4, 3), 0, conv_kernel_size=3)
    return cache


def read(cache: KVCache, count: int) -> None:
    for _ in range(count):
        cache.tokens.append(10 + len(cache.tokens))
        cache.layers[0].conv_states[0].fill_(len(cache.tokens))
        cache.layers[1].update(*states(len(cache.tokens) - 1, 1))


def held(cache: KVCache) -> tuple[int, int, int]:
    return len(cache.tokens), int(cache.layers[0].conv_states[0][0, 0, 0]), cache.layers[1].length


def test_recurrent_states_return_to_where_they_were_marked(recurrent: KVCache) -> None:
    cache = recurrent
    assert (cache.can_rewind, cache.can_return) == (False, True)
    for _ in range(2):
        read(cache, 5)
        cache.mark()
    read(cache, 5)
    assert cache.rewind(12) == 10
    assert held(cache) == (10, 10, 10)
    assert cache.rewind(9) == 5
    assert held(cache) == (5, 5, 5)
    read(cache, 5)
    assert cache.rewind(9) == 5, "what was marked of other tokens is void"
    assert cache.rewind(4) == 0
    assert cache.tokens == []


def test_of_many_marks_the_newest_stay_and_one_brief_one_beside_them(recurrent: KVCache) -> None:
    cache = recurrent
    for _ in range(6):
        read(cache, 2)
        cache.mark()
    for _ in range(3):
        read(cache, 1)
        cache.mark(briefly=True)
    assert set(cache.marked) == {8, 10, 12, 15}
    assert len(cache.marked) == SNAPSHOTS


def test_a_pass_broken_off_half_way_returns_to_the_last_mark(recurrent: KVCache) -> None:
    read(recurrent, 3)
    recurrent.mark()
    recurrent.layers[0].conv_states[0].fill_(99)
    assert recurrent.restore(3) == 3
    assert held(recurrent) == (3, 3, 3)
