"""Layers with inputs of their own, of which the last read keys and values of earlier ones (Gemma 4 E2B, E4B).

All are one call, with the tokens of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.kernels.native_abi import instruction_sets
from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import AttentionCall, NativeLibrary, open_library
from core.layers import fused_layers
from core.layers.fused_forward import FusedForward, Make, one_by_one
from core.layers.kv_cache import KVCache
from core.layers.layer_parts import parts_of
from core.model.blueprint import decoder_layers
from core.model.model_source import open_source
from core.model.trace import survey
from core.planning.native_layers import all_in_runs, in_runs
from core.spec import Format
from tests.core.families import VOCABULARY, make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt
from tests.core.layers.fused import PROMPT, count_own, forwards, load
from tests.core.layers.test_expert_families import round_weights, store_in_bf16

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
E2B: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2, "num_hidden_layers": 6,
    "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCABULARY, "enable_moe_block": False, "global_head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 1,
}  # fmt: skip
"""As in E2B: heads of two sizes, and half of the layers with wider MLPs and without keys and values of their own."""
LAYERS = E2B["num_hidden_layers"]
PARTS = [PROMPT, *([token] for token in PROMPT * 2), PROMPT[:5], PROMPT[:8], [1], PROMPT[:2]]
"""Exceeds the window of 24; several tokens at once as in speculative decoding."""


def loaded(folder: Path, format: Format, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> GreedyPath:
    return load("gemma4_text", folder, format, dtype, **(E2B | changes))


def logits(path: GreedyPath, cache: KVCache, parts: Sequence[Sequence[int]] = PARTS) -> list[Tensor]:
    return [path.model.forward(part, cache, keep=len(part)) for part in parts]


def ours(path: GreedyPath) -> list[FusedForward]:
    return forwards(path.module, FusedForward)


def test_the_same_tokens_as_transformers(tmp_path: Path) -> None:
    make_model("gemma4_text", tmp_path, **E2B)
    round_weights(tmp_path)
    prompt = random_prompt(40)
    edited = [*prompt[:30], 7, 9]
    expected = [reference_tokens(tmp_path, ids, 40) for ids in (prompt, edited)]
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    own = count_own(ours(path))
    assert [path.tokens(ids, 40) for ids in (prompt, edited)] == expected
    assert path.reused == 30
    assert len(ours(path)) == LAYERS
    assert 1 not in own


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_the_same_logits_as_with_the_layers_own_forward(format: Format, tmp_path: Path) -> None:
    path = loaded(tmp_path, format)
    assert len(ours(path)) == LAYERS
    found = logits(path, KVCache(path.module.config, 256))
    fused_layers.release(decoder_layers(path.module))
    assert not ours(path)
    for mine, own in zip(found, logits(path, KVCache(path.module.config, 256)), strict=True):
        assert (mine - own).abs().max() <= 0.03 * own.abs().max()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_gives_the_same_bits_as_layer_by_layer(
    dtype: torch.dtype, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counts, own = loaded(tmp_path, "int8", dtype), list[int](), NativeLibrary.layers

    def counted(self: NativeLibrary, layers: int, count: int, x: Tensor) -> Tensor:
        counts.append(count)
        return own(self, layers, count, x)

    monkeypatch.setattr(NativeLibrary, "layers", counted)
    caches = [KVCache(path.module.config, 512, format="int8" if packed else "bf16") for _ in range(2)]
    parts = [random_prompt(100), *PARTS[1:]]  # so many that older ones are read packed
    together = logits(path, caches[0], parts)
    assert set(counts) == {LAYERS}
    assert len(counts) >= len(PROMPT)
    with one_by_one(path.model.placement.runs):
        assert all(map(torch.equal, together, logits(path, caches[1], parts)))
    for one, other in zip(*(cache.layers[: LAYERS // 2] for cache in caches), strict=True):
        assert one.keys[:, :, : one.held].equal(other.keys[:, :, : other.held])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_token_gives_the_same_bits_among_drafted_ones(format: Format, tmp_path: Path) -> None:
    path = loaded(tmp_path, format, num_key_value_heads=2)  # up to 16 rows a call
    alone, together = (KVCache(path.module.config, 256) for _ in range(2))
    drafted = random_prompt(16, seed=3)
    for cache in (alone, together):
        path.model.forward(PROMPT, cache)
    expected = torch.stack([path.model.forward([id], alone)[-1] for id in drafted])
    for rows in (16, 7, 2):
        assert path.model.forward(drafted[:rows], together, keep=rows).equal(expected[:rows])
        together.rewind(len(PROMPT))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("place", [0, 5])
def test_every_instruction_set_computes_a_layer_of_odd_sizes(
    isa: str, dtype: torch.dtype, rows: int, place: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 84, "intermediate_size": 101, "head_dim": 14, "global_head_dim": 14}
    path = loaded(tmp_path, "int8", dtype, **sizes, hidden_size_per_layer_input=38)
    layer: Any = decoder_layers(path.module)[place]
    fused_layers.release([layer])
    parts = parts_of(layer, Make("gelu_tanh", half_angles=False, scaled=True))
    native = NativeLayer(open_library(isa), parts, dtype)
    x, angles = torch.randn(1, rows, 84).to(dtype), torch.randn(1, rows, 7).repeat(1, 1, 2)
    side = torch.randn(1, rows, 3, 38).to(dtype)[:, :, 1]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    lent = tuple(torch.randn(2, 1, 1, rows, 14).to(dtype))
    query, *made = native.begin(x, cos, sin)
    key, value = lent if place == 5 else made
    found = native.end(x, AttentionCall(query, key, value, mask, None, 1.0, 0.0), side)
    with torch.inference_mode():
        shared = {"full_attention": lent, "sliding_attention": lent}
        expected = layer(x, side, shared, attention_mask=mask, position_embeddings=(cos, sin))
    # Both read inputs quantised to 8 bits, which may fall on either side of a rounding step; norms behind the layer's
    # parts enlarge such a step.
    assert (found - expected).abs().max() <= 0.02 * (expected - x).abs().max()


def test_the_planner_knows_such_layers(tmp_path: Path) -> None:
    shared = survey(open_source(make_model("gemma4_text", tmp_path / "shared", **E2B)).module)
    assert in_runs(shared) == {*range(LAYERS)}
    assert not all_in_runs(shared), "beside a device, ours computes no layers that share keys and values"
    apart = survey(
        open_source(make_model("gemma4_text", tmp_path / "apart", **(E2B | {"num_kv_shared_layers": 0}))).module
    )
    assert all_in_runs(apart)


def test_states_are_lent_only_if_ours_computes_all_that_share_them(tmp_path: Path) -> None:
    path = loaded(tmp_path, "int8")
    layers = decoder_layers(path.module)
    fused_layers.release(layers)
    layers[4].register_module("another", torch.nn.Linear(2, 2))
    fused_layers.adopt(layers)
    kept = [isinstance(vars(layer).get("forward"), FusedForward) for layer in layers]
    assert kept == [True, False, False, False, False, False]
