"""Convolutions, the gated delta rule and Mamba-2's scan against their definitions, written with torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels import native_recurrent
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import NativeLibrary, open_library
from core.kernels.native_recurrent import ScanInputs

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.01}
TYPES = tuple(NEAR)


@pytest.fixture(params=instruction_sets())
def library(request: pytest.FixtureRequest) -> NativeLibrary:
    return open_library(request.param)


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    return bool((found.float() - expected.float()).abs().max() <= NEAR[dtype] * expected.float().abs().max())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("silu", [False, True])
def test_a_convolution_goes_on_from_what_it_kept(
    library: NativeLibrary, draw: torch.Generator, dtype: torch.dtype, rows: int, *, silu: bool
) -> None:
    channels, taps, kept = 530, 3, 4
    past = torch.randn(kept, channels, generator=draw).to(dtype)
    x = torch.randn(rows, channels + 6, generator=draw).to(dtype)[:, 2:-4]
    weight, bias = torch.randn(taps, channels, generator=draw), torch.randn(channels, generator=draw)
    whole = torch.cat((past, x))
    expected = F.conv1d(whole.float().T[None], weight.T[:, None], bias, groups=channels)[0].T[-rows:]
    found = native_recurrent.convolve(library, x, past, weight, bias, silu=silu)
    assert near(found, F.silu(expected) if silu else expected, dtype)
    assert torch.equal(past, whole[-kept:])
    fresh = native_recurrent.convolve(library, x, None, weight, None, silu=False)
    padded = F.pad(x.float().T[None], (taps - 1, 0))
    assert near(fresh, F.conv1d(padded, weight.T[:, None], groups=channels)[0].T, dtype)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    shared = v.shape[1] // k.shape[1]
    q, k = (F.normalize(one.double(), dim=-1).repeat_interleave(shared, 1) for one in (q, k))
    out, state = [], state.double()
    for t in range(len(v)):
        state = state * decay[t, :, None, None]
        change = (v[t] - torch.einsum("hkv,hk->hv", state, k[t])) * beta[t, :, None]
        state = state + torch.einsum("hk,hv->hkv", k[t], change)
        out.append(torch.einsum("hkv,hk->hv", state, q[t]) / q.shape[-1] ** 0.5)
    return torch.stack(out), state


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (128, 128), (37, 45)])
def test_the_gated_delta_rule(
    library: NativeLibrary, draw: torch.Generator, dtype: torch.dtype, rows: int, key_dim: int, value_dim: int
) -> None:
    q, k = (torch.randn(rows, 2, key_dim, generator=draw).to(dtype) for _ in range(2))
    v = torch.randn(rows, 4, value_dim, generator=draw).to(dtype)
    decay, beta = (torch.rand(rows, 4, generator=draw) for _ in range(2))
    before, after = torch.randn(4, key_dim, value_dim, generator=draw), torch.full((4, key_dim, value_dim), torch.nan)
    kept = before.clone()
    expected, state = delta_rule(q, k, v, decay, beta, before)
    assert near(native_recurrent.delta_rule(library, q, k, v, decay, beta, before, after), expected, dtype)
    assert near(after, state, torch.float32)
    assert torch.equal(before, kept), "whoever wants the old state back has it"
    fresh, _ = delta_rule(q, k, v, decay, beta, torch.zeros_like(before))
    assert near(native_recurrent.delta_rule(library, q, k, v, decay, beta, None, after), fresh, dtype)


def scan(
    x: Tensor, b: Tensor, c: Tensor, step: Tensor, decay: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    shared = x.shape[1] // b.shape[1]
    b, c = (one.double().repeat_interleave(shared, 1) for one in (b, c))
    out, state = [], state.double()
    for t in range(len(x)):
        state = state * decay[t, :, None, None] + torch.einsum("hp,hn->hpn", x[t] * step[t, :, None], b[t])
        out.append(torch.einsum("hpn,hn->hp", state, c[t]) + skip[:, None] * x[t])
    return torch.stack(out), state


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize(("dim", "states"), [(64, 128), (13, 21)])
def test_mamba_2(
    library: NativeLibrary, draw: torch.Generator, dtype: torch.dtype, rows: int, dim: int, states: int
) -> None:
    x = torch.randn(rows, 4, dim, generator=draw).to(dtype)
    b, c = (torch.randn(rows, 2, states, generator=draw).to(dtype) for _ in range(2))
    step, decay = (torch.rand(rows, 4, generator=draw) for _ in range(2))
    skip, before = torch.randn(4, generator=draw), torch.randn(4, dim, states, generator=draw)
    after = torch.full((4, dim, states), torch.nan)
    expected, state = scan(x, b, c, step, decay, skip, before)
    inputs = ScanInputs(x, b, c, step, decay, skip)
    found = native_recurrent.state_scan(library, inputs, before, after, dtype)
    assert near(found, expected, dtype)
    assert near(after, state, torch.float32)
    fresh, _ = scan(x, b, c, step, decay, torch.zeros(4), torch.zeros_like(before))
    inputs = ScanInputs(x, b, c, step, decay, None)
    assert near(native_recurrent.state_scan(library, inputs, None, after, dtype), fresh, dtype)


def test_a_token_is_the_same_however_many_are_read_at_once(library: NativeLibrary, draw: torch.Generator) -> None:
    """Drafts verified in one pass give the same as single passes, bit for bit."""
    rows, state = 12, torch.randn(4, 64, 64, generator=draw)
    q, k, v = (torch.randn(rows, 4, 64, generator=draw) for _ in range(3))
    decay, beta = (torch.rand(rows, 4, generator=draw) for _ in range(2))
    together, single = torch.empty_like(state), state.clone()
    expected = native_recurrent.delta_rule(library, q, k, v, decay, beta, state, together)
    for t in range(rows):
        row = slice(t, t + 1)
        found = native_recurrent.delta_rule(library, q[row], k[row], v[row], decay[row], beta[row], single, single)
        assert torch.equal(found, expected[row])
    assert torch.equal(single, together)
