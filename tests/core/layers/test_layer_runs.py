"""Consecutive layers in one call: the same numbers as one by one, and never across anything between them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from core.errors import ModelFailed
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import NativeLibrary
from core.layers.fused_forward import FusedForward, one_by_one
from core.layers.fused_layers import adopt, release
from core.layers.kv_cache import KVCache
from core.model.blueprint import decoder_layers
from core.model.language_model import ForwardStopped
from core.spec import Format
from tests.core.greedy import GreedyPath
from tests.core.layers.fused import PROMPT, load

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("llama", "qwen2", "qwen3", "olmo2", "mistral", "granite", "mixtral", "qwen3_moe", "qwen2_moe")
LAYERS = 4
SLACK = 64
PARTS = [PROMPT, [1], [2], [3], PROMPT[:3], PROMPT[:3], [4], PROMPT[:8], PROMPT[:8], [5]]
"""Each number of rows once to be observed, and then in one call."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Record layers and rows of each call that computes several layers."""
    made: list[tuple[int, int]] = []
    own = NativeLibrary.layers

    def counted(self: NativeLibrary, layers: int, count: int, x: Tensor) -> Tensor:
        made.append((count, x.shape[1]))
        return own(self, layers, count, x)

    monkeypatch.setattr(NativeLibrary, "layers", counted)
    return iter([made])


def logits(path: GreedyPath, cache: KVCache) -> Tensor:
    return torch.stack([path.model.forward(part, cache)[-1] for part in PARTS])


def stored() -> Iterator[tuple[str, Format, torch.dtype]]:
    """Yield each family with both formats, of which one is computed in 32 bits and the other in 16, in turns: a run
    calls the same kernels for each family."""
    for family, wide in zip(FAMILIES, cycle(("int8", "int4")), strict=False):
        yield family, "int8", torch.float32 if wide == "int8" else torch.bfloat16
        yield family, "int4", torch.float32 if wide == "int4" else torch.bfloat16


@pytest.mark.parametrize(("family", "format", "dtype"), [*stored()])
def test_the_same_numbers_as_one_by_one(
    family: str, format: Format, dtype: torch.dtype, tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load(family, tmp_path, format, dtype, num_hidden_layers=LAYERS), next(calls)
    together = logits(path, KVCache(path.module.config, 256))
    assert made == [(LAYERS, rows) for rows in (1, 1, 3, 1, 8, 1)]
    with one_by_one(path.model.placement.runs):
        assert logits(path, KVCache(path.module.config, 256)).equal(together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "qwen3_moe"])
def test_keys_and_values_of_8_bits_are_packed_as_one_by_one(
    family: str, dtype: torch.dtype, tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load(family, tmp_path, "int8", dtype, num_hidden_layers=LAYERS), next(calls)
    together, alone = (KVCache(path.module.config, 256, format="int8") for _ in range(2))
    for cache in (together, alone):  # so many that older ones are read packed
        path.model.forward(PROMPT * 10, cache)
    found = logits(path, together)
    assert made == [(LAYERS, rows) for rows in (1, 1, 3, 1, 8, 1)]
    with one_by_one(path.model.placement.runs):
        assert logits(path, alone).equal(found)
    held = together.layers[0].held
    for one, other in zip(together.layers, alone.layers, strict=True):
        assert one.keys[:, :, :held].equal(other.keys[:, :, :held])
        assert one.values[:, :, :held].equal(other.values[:, :, :held])
        assert all(map(torch.equal, one.newest(), other.newest()))


def test_dropped_drafts_leave_the_newest_tokens_of_8_bits_as_they_were(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    plain, drafted = (KVCache(path.module.config, 256, format="int8") for _ in range(2))
    ids, told = [id % 190 + 3 for id in range(220)], []
    for id in ids:
        told.append(path.model.forward([id], plain)[-1])
        length = len(drafted.tokens)
        path.model.forward([id, *PROMPT[: id % 7]], drafted)
        drafted.rewind(length)
        assert told[-1].equal(path.model.forward([id], drafted)[-1])
    assert {rows for _, rows in made} == {1, 2, 3, 4, 5, 6, 7}
    plain.rewind(100)  # further back than unpacked states are held: packed ones are read instead
    again = torch.stack([path.model.forward([id], plain)[-1] for id in ids[100:]])
    assert not again[0].equal(told[100])
    assert torch.nn.functional.cosine_similarity(again, torch.stack(told[100:])).mean() > 0.99


def test_the_same_tokens_after_a_cut_and_in_another_cache(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    first, second = path.tokens(PROMPT, 12), path.tokens([*PROMPT[:6], 9, 8], 12)
    assert path.reused == 6
    path.cache.reset()
    assert path.tokens(PROMPT, 12) == first
    path.cache = KVCache(path.module.config, 64)
    assert path.tokens([*PROMPT[:6], 9, 8], 12) == second
    assert len(made) > 40


GEMMA4_31B = {
    "attention_k_eq_v": True,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "enable_moe_block": False,
}


@pytest.mark.parametrize(
    ("family", "packed", "changes"),
    [
        ("gemma3_text", False, {}),
        ("gpt_oss", False, {}),
        ("gpt_oss", True, {}),
        ("gemma4_text", False, {}),
        ("gemma4_text", False, GEMMA4_31B),
    ],
)
def test_layers_with_windows_and_without_are_one_call(
    family: str, packed: bool, changes: dict[str, Any], tmp_path: Path, calls: Iterator[list[tuple[int, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("core.layers.kv_layers.SLIDING_SLACK", SLACK)
    kinds = [*["sliding_attention"] * 3, *["full_attention"] * 2]
    path, made = load(family, tmp_path, num_hidden_layers=len(kinds), layer_types=kinds, **changes), next(calls)
    tokens = [[id % 190 + 3] for id in range(SLACK + 80)]  # until the window has moved to the buffer's front
    parts = [*tokens, PROMPT[:5], PROMPT[:5], [9], PROMPT[:8], PROMPT[:8]]

    def found() -> tuple[Tensor, KVCache]:
        cache = KVCache(path.module.config, 2048, format="int8" if packed else "bf16")
        return torch.stack([path.model.forward(part, cache)[-1] for part in parts]), cache

    together, first = found()
    assert {count for count, _ in made} == {len(kinds)}
    assert [rows for _, rows in made[-4:]] == [1, 5, 1, 8]
    with one_by_one(path.model.placement.runs):
        alone, second = found()
    assert together.equal(alone)
    for one, other in zip(first.layers, second.layers, strict=True):
        assert one.keys[:, :, : one.held].equal(other.keys[:, :, : other.held])


def test_a_layer_that_is_given_another_mask_gets_what_was_put_off(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    expected = logits(path, KVCache(path.module.config, 256))
    made.clear()

    def copied(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"position_embeddings": tuple(one.clone() for one in kwargs["position_embeddings"])}

    decoder_layers(path.module)[2].register_forward_pre_hook(copied, with_kwargs=True)
    assert logits(path, KVCache(path.module.config, 256)).equal(expected)
    assert not made


def test_a_cache_that_was_replaced_is_let_go(tmp_path: Path, calls: Iterator[list[tuple[int, int]]]) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    cache = KVCache(path.module.config, 256)
    logits(path, cache)
    assert made
    kept = [weakref.ref(cache), weakref.ref(cache.layers[0].keys)]
    del cache
    gc.collect()
    assert [one() for one in kept] == [None, None]


def test_what_comes_between_layers_later_is_a_failure_once_and_then_heeded(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path = load("llama", tmp_path, num_hidden_layers=LAYERS)
    plain = path.tokens(PROMPT, 12)
    decoder_layers(path.module)[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    read = list(path.cache.tokens)
    with pytest.raises(ModelFailed):
        path.model.forward([3], path.cache)
    assert path.cache.tokens == read
    path.cache.reset()
    changed = path.tokens(PROMPT, 12)
    assert changed != plain
    with one_by_one(path.model.placement.runs):
        path.cache.reset()
        assert path.tokens(PROMPT, 12) == changed


def test_nothing_is_left_out_between_two_layers(tmp_path: Path, calls: Iterator[list[tuple[int, int]]]) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    decoder_layers(path.module)[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    logits(path, KVCache(path.module.config, 256))
    assert not made


def test_a_cache_of_another_kind_is_updated_layer_by_layer(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    expected = logits(path, KVCache(path.module.config, 256))
    made.clear()
    cache = KVCache(path.module.config, 256)
    for layer in cache.layers:
        layer.home = torch.device("cpu")
    assert logits(path, cache).equal(expected)
    assert not made


def test_a_layer_of_the_cache_that_is_the_models_own_is_updated_by_the_layer(
    tmp_path: Path, calls: Iterator[list[tuple[int, int]]]
) -> None:
    """As in Unlimited-OCR, whose window keeps what it refers to."""
    path, made = load("llama", tmp_path, num_hidden_layers=LAYERS), next(calls)
    expected = logits(path, KVCache(path.module.config, 256))
    made.clear()
    cache = KVCache(path.module.config, 256)
    cache.layers[1] = DynamicLayer()
    assert logits(path, cache).equal(expected)
    assert not made


def test_a_stopped_pass_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    path = load("llama", tmp_path, num_hidden_layers=LAYERS)
    expected = path.tokens(PROMPT, 12)
    path.cache.reset()
    assert path.tokens(PROMPT, 6) == expected[:6]
    looks = iter([False] * 2 + [True] * LAYERS)
    held = len(path.cache.tokens)
    with pytest.raises(ForwardStopped):
        path.model.forward([expected[5]], path.cache, lambda: next(looks))
    assert len(path.cache.tokens) == held
    assert path.tokens([*PROMPT, *expected[:6]], 6) == expected[6:]


def test_layers_that_lend_their_states_compute_them_themselves(tmp_path: Path) -> None:
    path = load(
        "gemma4_text", tmp_path, enable_moe_block=False, layer_types=["sliding_attention", "full_attention"] * 2
    )
    layers: list[Any] = decoder_layers(path.module)
    assert all(isinstance(vars(one).get("forward"), FusedForward) for one in layers)
    release(layers)
    layers[3].self_attn.is_kv_shared_layer = True
    layers[3].self_attn.store_full_length_kv = False
    adopt(layers)
    assert [isinstance(vars(one).get("forward"), FusedForward) for one in layers[:3]] == [True, True, False]
