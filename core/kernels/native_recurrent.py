"""Recurrent layers (layers with a state of fixed size) as one native call each, for any number of tokens.

All tensors are on the CPU; inputs and outputs are fp32 or bf16, states fp32. Input rows may be strided, columns are
contiguous. A token's result does not depend on how many tokens one call computes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_fields import addresses, numbers
from core.kernels.native_library import NativeLibrary

STATE_TYPES = (torch.float32, torch.bfloat16)
MOST_KEYS = 256


class _Convolution(ctypes.Structure):
    """Mirrors `Convolution` in recurrent.c; the structures below mirror its `Delta` and `Scan`."""

    _fields_ = (
        *numbers("rows", "channels", "stride", "kept_rows", "taps", "silu"),
        *addresses("kept", "x", "weight", "bias", "out"),
        ("type", ctypes.c_int),
    )


class _Delta(ctypes.Structure):
    _fields_ = (
        *numbers("rows", "key_heads", "value_heads", "key_dim", "value_dim", "q_stride", "k_stride", "v_stride"),
        *addresses("q", "k", "v", "decay", "beta"),
        *addresses("before", "after", "out", "keys"),
        ("type", ctypes.c_int),
    )


class _Scan(ctypes.Structure):
    _fields_ = (
        *numbers("rows", "heads", "groups", "dim", "states", "x_stride", "b_stride", "c_stride"),
        *addresses("x", "b", "c", "step", "decay", "skip"),
        *addresses("before", "after", "out", "wide"),
        ("type", ctypes.c_int),
        ("out_type", ctypes.c_int),
    )


def convolve(
    library: NativeLibrary, x: Tensor, kept: Tensor | None, weight: Tensor, bias: Tensor | None, *, silu: bool
) -> Tensor:
    """Return the causal convolution (T, C) of x (T, C) per channel, followed by SiLU if asked for.

    `weight` (taps, C) and `bias` (C,) are fp32. `kept` (R, C), contiguous, holds the inputs before the first one, zeros
    if None; it is updated to the last R inputs.
    """
    (rows, channels), out = x.shape, torch.empty(x.shape, dtype=x.dtype)
    kept_rows = 0 if kept is None else kept.shape[0]
    call = _Convolution(
        rows, channels, x.stride(0), kept_rows, weight.shape[0], silu, _at(kept), _at(x), _at(weight), _at(bias),
        _at(out), TYPES[x.dtype],
    )  # fmt: skip
    library.convolve(ctypes.addressof(call), x.nbytes)
    return out


def delta_rule(
    library: NativeLibrary, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, before: Tensor | None,
    after: Tensor,
) -> Tensor:  # fmt: skip
    """Apply the gated delta rule: q, k (T, KH, K) and v (T, VH, V) -> (T, VH, V); q and k are L2-normalised first.

    `decay` and `beta` (T, VH) are fp32, contiguous. `before` (VH, K, V) is the initial state, zeros if None; the final
    state is written to `after`, which may be the same tensor.
    """
    (rows, key_heads, key_dim), (_, heads, value_dim) = k.shape, v.shape
    out, keys = torch.empty(v.shape, dtype=v.dtype), torch.empty(rows * key_heads * 2 * key_dim)
    call = _Delta(
        rows, key_heads, heads, key_dim, value_dim, q.stride(0), k.stride(0), v.stride(0), _at(q), _at(k), _at(v),
        _at(decay), _at(beta), _at(before), _at(after), _at(out), _at(keys), TYPES[v.dtype],
    )  # fmt: skip
    library.delta_rule(ctypes.addressof(call), rows * after.nbytes)
    return out


@dataclass(frozen=True, eq=False)
class ScanInputs:
    """Inputs of `state_scan`: x (T, H, P), b and c (T, G, N); `step`, `decay` (T, H) and `skip` (H,) fp32,
    contiguous."""

    x: Tensor
    b: Tensor
    c: Tensor
    step: Tensor
    decay: Tensor
    skip: Tensor | None


def state_scan(
    library: NativeLibrary, inputs: ScanInputs, before: Tensor | None, after: Tensor, dtype: torch.dtype
) -> Tensor:
    """Apply Mamba-2's state space scan; return (T, H, P) of `dtype`.

    `before` (H, P, N) is the initial state, zeros if None; the final state is written to `after`, which may be the
    same.
    """
    x, b, c = inputs.x, inputs.b, inputs.c
    (rows, heads, dim), (_, groups, states) = x.shape, b.shape
    out, wide = torch.empty(x.shape, dtype=dtype), torch.empty(rows * groups * 2 * states)
    call = _Scan(
        rows, heads, groups, dim, states, x.stride(0), b.stride(0), c.stride(0), _at(x), _at(b), _at(c),
        _at(inputs.step), _at(inputs.decay), _at(inputs.skip), _at(before), _at(after), _at(out), _at(wide),
        TYPES[x.dtype], TYPES[dtype],
    )  # fmt: skip
    library.state_scan(ctypes.addressof(call), rows * after.nbytes)
    return out


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
