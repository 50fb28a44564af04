"""An 8-bit KV cache: close to the model's values, and rewound, moved, saved and parked like one of floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.kernels.packed_width import PACKED
from core.layers import kv_file
from core.layers.kv_cache import KVCache
from core.layers.kv_packed import PackedLayer
from core.layers.kv_parking import ParkedPrefixes
from core.layers.kv_states import grows_only, restore, states_of
from core.runtime.loaded_model import LoadedModel
from core.spec import RECENT, RECENT_ROOM
from tests.core.families import FAMILIES, RARER_FAMILIES, make_model
from tests.core.greedy import OPTIONS, GreedyPath, loaded_model, random_prompt
from tests.core.tiny_tokenizer import write_tokenizer

PACKING = replace(OPTIONS, kv="int8")
CARD = replace(PACKING, simulate_gpu="vram=1GiB,link=12GB/s")
ATTENDING = [name for name in (*FAMILIES, *RARER_FAMILIES) if name not in ("mamba", "mamba2")]


def told(loaded: LoadedModel) -> Tensor:
    """Return the logits after a prompt read in two parts, and after each of some more tokens."""
    ids = random_prompt(90)
    loaded.model.forward(ids[:50], loaded.cache)
    loaded.model.forward(ids[50:80], loaded.cache)
    return torch.cat([loaded.model.forward([id], loaded.cache) for id in ids[80:]])


def folder(tmp_path: Path, family: str) -> Path:
    made = make_model(family, tmp_path / family)
    write_tokenizer(made)
    return made


@pytest.mark.parametrize("family", ATTENDING)
def test_every_family_says_nearly_the_same(tmp_path: Path, family: str) -> None:
    path = folder(tmp_path, family)
    exact, packed = loaded_model(path), loaded_model(path, PACKING)
    wanted, found = told(exact), told(packed)
    near = torch.nn.functional.cosine_similarity(wanted, found)
    # Random weights amplify differences: with a wrong key or value the logits would be entirely different.
    assert float(near.mean()) > 0.95
    kept = sum(isinstance(layer, PackedLayer) for layer in packed.cache.layers)
    assert (kept > 0) == (packed.spec.with_kv("int8") != packed.spec)
    if kept:
        # 8 bits only lose something where layers see further than the newest tokens.
        assert torch.equal(wanted, found) == all(0 < layer.window <= RECENT for layer in packed.spec.kv_layers)
        assert packed.cache.nbytes < exact.cache.nbytes
        if packed.cache.can_rewind:
            packed.model.forward(random_prompt(90)[-1:], packed.cache)
            packed.cache.rewind(89)
            again = packed.model.forward(random_prompt(90)[-1:], packed.cache)
            assert torch.equal(again[0], found[-1])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "bloom"])
def test_the_plan_counts_what_is_held(tmp_path: Path, family: str) -> None:
    packed = loaded_model(folder(tmp_path, family), replace(PACKING, format="bf16"))
    told(packed)
    assert packed.plan.kv == "int8"
    planned = sum(memory.kv_cache for memory in packed.plan.memory)
    assert planned == packed.spec.with_kv("int8").kv_bytes(packed.plan.context)
    full = all(layer.window == 0 for layer in packed.spec.kv_layers)
    assert not full or packed.cache.nbytes == planned


@pytest.mark.parametrize("options", [PACKING, CARD], ids=["processor", "card"])
def test_a_parked_conversation_comes_back_as_it_was(tmp_path: Path, options: object) -> None:
    path = GreedyPath(make_model("gemma3_text", tmp_path / "model"), options)  # type: ignore[arg-type]
    first, second = random_prompt(150, 1), random_prompt(150, 2)
    alone = path.tokens(first, 8)
    prefixes = ParkedPrefixes(1 << 24)
    prefixes.switch(path.cache, second, 0)
    path.tokens(second, 8)
    prefixes.switch(path.cache, first, 0)
    assert path.tokens(first, 8) == alone
    assert path.reused == 149


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_a_file_has_says_the_same(tmp_path: Path, family: str) -> None:
    path, ids, file = GreedyPath(make_model(family, tmp_path / "model"), PACKING), random_prompt(200), tmp_path / "one"
    for begin, end in ((0, 120), (120, 170)):
        path.model.forward(ids[begin:end], path.cache)
        put = kv_file.append if grows_only(path.cache) else kv_file.replace
        put(file, "key", kv_file.Kept(path.cache.tokens, begin, states_of(path.cache)), lambda: False)
    told = [path.model.forward([id], path.cache) for id in ids[170:]]
    kept = kv_file.read(file, "key")
    assert kept is not None
    assert kept.tokens == ids[:170]
    fresh = KVCache(path.module.config, 256, format="int8")
    restore(fresh, kept.tokens, kept.layers, "cpu")
    assert torch.equal(torch.cat([path.model.forward([id], fresh) for id in ids[170:]]), torch.cat(told))


def test_a_card_says_what_the_processor_says(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama")
    near = torch.nn.functional.cosine_similarity(told(loaded_model(path, PACKING)), told(loaded_model(path, CARD)))
    assert float(near.min()) > 0.9999


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_was_read_comes_along_when_layers_lie_elsewhere(family: str) -> None:
    def elsewhere(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        assert (dtype is PACKED) != (shape[2] == RECENT_ROOM)
        return torch.full(tuple(shape), 99, dtype=dtype)

    config = CONFIG_MAPPING[family](**FAMILIES[family])
    stayed, moved = KVCache(config, 3000, format="int8"), KVCache(config, 3000, format="int8")
    for count, places in ((40, {1: elsewhere}), (1500, {}), (7, {0: elsewhere, 1: elsewhere}), (3, {})):
        for layer in range(len(moved.layers)):
            new = torch.randn(1, 2, count, 16), torch.randn(1, 2, count, 16)
            found = [cache.update(*new, layer) for cache in (stayed, moved)]
            assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        moved.move(places)
