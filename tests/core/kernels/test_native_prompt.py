"""Attention of many query rows against double precision, on every instruction set: groups, windows, odd lengths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.kernels import native_prompt
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import AttentionCall
from core.kernels.native_prompt import SETS, attend, suits

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
USED = [name for name in instruction_sets() if name in SETS]
pytestmark = pytest.mark.skipif(not USED, reason="this processor has no such kernel")


def expected(call: AttentionCall) -> Tensor:
    """Compute (B, S, H, D) in double precision."""
    shared = call.query.shape[1] // call.key.shape[1]
    key, value = (one.double().repeat_interleave(shared, 1) for one in (call.key, call.value))
    scores = call.query.double() @ key.transpose(2, 3) * call.scale
    if call.softcap:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if call.mask is not None:
        scores = scores.masked_fill(~call.mask, -torch.inf)
    if call.sinks is not None:
        column = call.sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), -1)
    return (scores.softmax(-1)[..., : key.shape[2]] @ value).transpose(1, 2)


def window(queries: int, keys: int, width: int) -> Tensor:
    """Return the mask (1, 1, S, T) of the last queries of a text, which see so many tokens."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return ((distance >= 0) & (distance < width))[None, None]


def states(heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Return random states (1, H, T, D) at the beginning of a longer buffer, whose rest is not a number."""
    buffer = torch.full((1, heads, tokens + 70, dim), torch.nan, dtype=dtype)
    buffer[:, :, :tokens] = torch.randn(1, heads, tokens, dim)
    return buffer[:, :, :tokens]


def a_call(
    queries: int, keys: int, heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, width: int = 0,
    softcap: float = 0.0, sinks: Tensor | None = None,
) -> AttentionCall:  # fmt: skip
    """`heads`: KV heads and query heads of each; `width`: of a window, 0 = none."""
    query = torch.randn(1, queries, heads[0] * heads[1], dims[0]).to(dtype).transpose(1, 2)
    key, value = (states(heads[0], keys, dim, dtype) for dim in dims)
    mask = window(queries, keys, width or keys)
    return AttentionCall(query, key, value, mask, sinks, dims[0] ** -0.5, softcap)


@settings(max_examples=50, deadline=None)
@given(
    heads=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 3, 4, 7])),
    queries=st.integers(1, 200),
    past=st.sampled_from([0, 1, 63, 64, 300]),
    dims=st.sampled_from([(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (48, 16), (192, 128), (6, 4)]),
    width=st.sampled_from([0, 1, 64, 100]),
    softcap=st.sampled_from([0.0, 5.0]),
    with_sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape_on_every_instruction_set(
    heads: tuple[int, int], queries: int, past: int, dims: tuple[int, int], width: int, softcap: float,
    with_sinks: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    sinks = torch.randn(heads[0] * heads[1]) if with_sinks else None
    call = a_call(queries, past + queries, heads, dims, dtype, width, softcap, sinks)
    wanted = expected(call)
    for name in USED:
        found = attend(call, causal=False, instruction_set=name)
        assert found is not None
        assert found.shape == (1, queries, heads[0] * heads[1], dims[1])
        assert (found.double() - wanted).abs().max() < TOLERANCE[dtype] * 4


@pytest.mark.parametrize("name", USED)
def test_causal_without_a_mask_and_several_texts(name: str) -> None:
    query, key, value = torch.randn(2, 4, 130, 32), torch.randn(2, 2, 150, 32), torch.randn(2, 2, 150, 32)
    call = AttentionCall(query, key, value, None, None, 0.2, 0.0)
    masked = AttentionCall(query, key, value, window(130, 150, 150).expand(2, 1, 130, 150), None, 0.2, 0.0)
    found, all_seen = attend(call, causal=True, instruction_set=name), attend(call, causal=False, instruction_set=name)
    assert found is not None
    assert all_seen is not None
    assert (found.double() - expected(masked)).abs().max() < 1e-5
    assert (all_seen.double() - expected(call)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 4, 64), (4, 2, 128), (2, 1, 256)])
def test_bf16_is_at_least_as_exact_as_torch(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    kv_heads, shared, dim = shape
    call = a_call(192, 700, (kv_heads, shared), (dim, dim), torch.bfloat16)
    wanted = expected(call)
    by_torch = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=call.mask, scale=call.scale, enable_gqa=shared > 1
    ).transpose(1, 2)
    most = (by_torch.double() - wanted).norm()
    for name in USED:
        found = attend(call, causal=False, instruction_set=name)
        assert found is not None
        assert (found.double() - wanted).norm() <= 1.02 * most


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_however_its_text_is_cut(name: str, dtype: torch.dtype) -> None:
    whole = a_call(300, 300, (2, 3), (64, 64), dtype)
    found = attend(whole, causal=True, instruction_set=name)
    assert found is not None
    for first, end in pairwise((0, 1, 8, 71, 150, 299, 300)):
        mask = window(end - first, end, end)
        part = AttentionCall(
            whole.query[:, :, first:end], whole.key[:, :, :end], whole.value[:, :, :end], mask, None, whole.scale, 0.0
        )
        own = attend(part, causal=False, instruction_set=name)
        assert own is not None
        assert torch.equal(own, found[:, first:end])


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_are_zeros_and_broken_keys_stay_visible(name: str, dtype: torch.dtype) -> None:
    call = a_call(70, 90, (1, 2), (16, 16), dtype)
    assert call.mask is not None
    call.mask[:, :, 5] = False
    call.key[0, 0, 40, 3] = torch.nan
    found = attend(call, causal=False, instruction_set=name)
    assert found is not None
    assert not found[:, 5].any()
    assert found[:, :20].isfinite().all()
    assert found[:, 20:].isnan().all()


def test_scattered_keys_are_left_to_others() -> None:
    call = a_call(80, 80, (1, 2), (16, 16), torch.float32)
    assert call.mask is not None
    call.mask[0, 0, 50, 20] = False
    assert attend(call, causal=False) is None


def test_what_the_kernel_does_not_take() -> None:
    plain = a_call(80, 80, (1, 2), (16, 16), torch.float32)
    odd = a_call(80, 80, (1, 2), (33, 17), torch.float32)
    halves = a_call(80, 80, (1, 2), (16, 16), torch.float16)
    other_values = a_call(80, 80, (1, 2), (32, 16), torch.bfloat16)
    assert suits(plain)
    assert not suits(other_values)
    assert not suits(odd)
    assert not suits(halves)


@pytest.mark.parametrize("faster", [True, False])
def test_bf16_is_left_to_torch_where_torch_is_faster(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_prompt, "attends_short", lambda: faster)
    assert suits(a_call(80, 80, (1, 2), (16, 16), torch.bfloat16)) == faster
    assert not suits(a_call(80, 80, (1, 2), (32, 16), torch.bfloat16))
    assert suits(a_call(80, 80, (1, 2), (16, 16), torch.float32))
