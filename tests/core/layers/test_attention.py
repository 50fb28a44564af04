"""Attention against plain double-precision arithmetic: grouped heads, masks, windows, soft caps, sinks, prefill."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig, Qwen3Config
from transformers.configuration_utils import PretrainedConfig

from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import AttentionCall, open_library
from core.kernels.packed_states import pack, widen
from core.kernels.packed_width import PACKED, packed_width
from core.layers import attention
from core.layers.attention import attend, register

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def expected(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Compute (B, S, H, D) in double precision."""
    shared = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(shared, 1), value.double().repeat_interleave(shared, 1)
    scores = q @ k.transpose(2, 3) * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)), -1)
    weights: Tensor = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ v).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 3]),
    shared=st.sampled_from([1, 2, 5]),
    queries=st.integers(1, 12),
    keys=st.integers(1, 700),
    dims=st.sampled_from([(8, 8), (64, 64), (80, 80), (96, 64), (33, 17), (128, 128), (64, 256), (80, 320)]),
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
    with_mask=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    batch=st.integers(1, 2),
)
def test_few_rows_on_every_instruction_set(
    kv_heads: int, shared: int, queries: int, keys: int, dims: tuple[int, int], softcap: float | None,
    with_sinks: bool, with_mask: bool, dtype: torch.dtype, batch: int,
) -> None:  # fmt: skip
    heads = kv_heads * shared
    query = torch.randn(batch, queries, heads, dims[0]).to(dtype).transpose(1, 2)
    key = torch.randn(batch, kv_heads, 800, dims[0]).to(dtype)[:, :, :keys]
    value = torch.randn(batch, kv_heads, 800, dims[1]).to(dtype)[:, :, :keys]
    mask = torch.rand(batch, 1, queries, 900)[..., :keys] > 0.4 if with_mask else None
    if mask is not None:
        mask[..., 0] = True
    sinks = torch.randn(heads) if with_sinks else None
    wanted = expected(query, key, value, mask, softcap, sinks)
    for name in instruction_sets():
        call = AttentionCall(query, key, value, mask, sinks, dims[0] ** -0.5, softcap or 0.0)
        found = open_library(name).attention(call)
        assert found.shape == (batch, queries, heads, dims[1])
        assert (found.double() - wanted).abs().max() < TOLERANCE[dtype] * 4


@settings(max_examples=60, deadline=None)
@given(
    shared=st.sampled_from([1, 2, 5]),
    queries=st.integers(1, 12),
    keys=st.integers(1, 700),
    newest=st.sampled_from([0, 1, 40, 1000]),
    dims=st.sampled_from([(8, 8), (64, 64), (80, 80), (96, 64), (33, 17), (128, 128), (64, 256)]),
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
    with_mask=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_few_rows_over_packed_keys_and_values(
    shared: int, queries: int, keys: int, newest: int, dims: tuple[int, int], softcap: float | None, with_sinks: bool,
    with_mask: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    query = torch.randn(1, queries, 2 * shared, dims[0]).to(dtype).transpose(1, 2)
    key, value = (torch.zeros(1, 2, 800, packed_width(dim), dtype=PACKED)[:, :, 5 : 5 + keys] for dim in dims)
    pack(torch.randn(1, 2, keys, dims[0]), key, mixed=True)
    pack(torch.randn(1, 2, keys, dims[1]), value, mixed=False)
    mask = torch.rand(1, 1, queries, 900)[..., :keys] > 0.4 if with_mask else None
    if mask is not None:
        mask[..., 0] = True
    sinks = torch.randn(2 * shared) if with_sinks else None
    count, floats = min(newest, keys), (widen(key, dtype, mixed=True), widen(value, dtype, mixed=False))
    recent = tuple(torch.randn(1, 2, 1100, dim).to(dtype)[:, :, 7 : 7 + count] for dim in dims)
    for states, new in zip(floats, recent, strict=True):
        states[:, :, keys - count :] = new
    wanted = expected(query, *floats, mask, softcap, sinks)
    for name in instruction_sets():
        call = AttentionCall(
            query, key, value, mask, sinks, dims[0] ** -0.5, softcap or 0.0, (recent[0], recent[1]) if count else None
        )
        found = open_library(name).attention(call)
        assert found.shape == (1, queries, 2 * shared, dims[1])
        assert (found.double() - wanted).abs().max() < TOLERANCE[dtype] * 4


@pytest.fixture(params=["compiled", "torch"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(attention, "native", lambda: None)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 3, 300])
@pytest.mark.parametrize("masked", ["no mask", "window"])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (20.0, False), (None, True)])
def test_what_layers_call(
    dtype: torch.dtype, queries: int, masked: str, softcap: float | None, with_sinks: bool
) -> None:
    keys = 400 if masked == "window" or queries == 1 else queries
    query, module = torch.randn(1, 6, queries, 32).to(dtype), nn.Module()
    key, value = (torch.randn(1, 2, keys, 32).to(dtype) for _ in range(2))
    positions = torch.arange(keys - queries, keys)[:, None]
    distance = positions - torch.arange(keys)
    seen = (distance >= 0) & (distance < (100 if masked == "window" else keys))
    mask = seen[None, None]
    sinks = torch.randn(6) if with_sinks else None
    given_mask = mask if masked == "window" else None
    found, none = attend(module, query, key, value, given_mask, scaling=None, softcap=softcap, s_aux=sinks)
    assert none is None
    assert found.dtype == dtype
    assert found.is_contiguous()
    wanted = expected(query, key, value, mask, softcap, sinks)
    assert (found.double() - wanted).abs().max() < {**TOLERANCE, torch.float16: 1e-3}[dtype] * 4


def test_without_causality_every_key_is_seen() -> None:
    query, module = torch.randn(1, 4, 20, 16), nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    key, value = torch.randn(1, 2, 50, 16), torch.randn(1, 2, 50, 16)
    found, _ = attend(module, query, key, value, None)
    assert (found.double() - expected(query, key, value, None, None, None)).abs().max() < 1e-5


@pytest.mark.parametrize("queries", [1, 3, 20, 300])
def test_heads_may_see_different_keys(queries: int) -> None:
    """As Doge's, whose masks choose keys for each head."""
    query, key, value = (torch.randn(1, heads, rows, 32) for heads, rows in ((4, queries), (2, 300), (2, 300)))
    mask = torch.rand(1, 4, queries, 300) < 0.7
    found, _ = attend(nn.Module(), query, key, value, mask)
    torch.testing.assert_close(found.double(), expected(query, key, value, mask, None, None), rtol=1e-4, atol=1e-5)


def test_a_row_that_sees_nothing_is_zero_and_broken_keys_stay_visible() -> None:
    query, key, value = torch.randn(1, 4, 2, 16), torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)
    mask = torch.ones(1, 1, 2, 40, dtype=torch.bool)
    mask[:, :, 1] = False
    found, _ = attend(nn.Module(), query, key, value, mask)
    assert not found[:, 1].any()
    key[0, 1, 7, 3] = torch.nan
    found, _ = attend(nn.Module(), query, key, value, mask)
    assert found[:, 0, :2].isfinite().all()
    assert found[:, 0, 2:].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    query, key, value = torch.randn(1, 2, 1, 16) * 300, torch.randn(1, 2, 90, 16) * 300, torch.randn(1, 2, 90, 16)
    found, _ = attend(nn.Module(), query, key, value, None)
    assert (found.double() - expected(query, key, value, None, None, None)).abs().max() < 1e-4


COMMON = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "qwen3": Qwen3Config(**COMMON),
    "gemma2": Gemma2Config(**COMMON, sliding_window=8, attn_logit_softcapping=5.0),
    "gpt-oss": GptOssConfig(**COMMON, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("family", CONFIGS)
@torch.inference_mode()
def test_whole_models_answer_as_with_eager_attention(family: str) -> None:
    torch.manual_seed(0)
    config: PretrainedConfig = CONFIGS[family]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(1, 101, (1, 21))
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    model.set_attn_implementation(register())
    found = model.generate(ids, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), rtol=1e-4, atol=1e-5)
