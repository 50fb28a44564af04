"""Unpacks several small integers from one word or byte, the first from the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor

BYTE = 8


def _only_shape(data: Tensor, each: int) -> Tensor:
    # Shifts of meta tensors would import sympy, which takes seconds.
    return data.new_empty((*data.shape[:-1], data.shape[-1] * each))


def nibbles(data: Tensor, *, high_first: bool = False) -> Tensor:
    """Unpack bytes (..., n) to 4-bit integers (..., 2 n)."""
    if data.is_meta:
        return _only_shape(data, 2)
    halves = (data >> 4, data & 15) if high_first else (data & 15, data >> 4)
    return torch.stack(halves, dim=-1).flatten(-2)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Unpack int32 (..., n) to bytes (..., n * 32 / bits); `bits` divides 8."""
    data = words.contiguous().view(torch.uint8)
    if bits == BYTE:
        return data
    if data.is_meta:
        return _only_shape(data, BYTE // bits)
    shifts = torch.arange(0, BYTE, bits, dtype=torch.uint8, device=data.device)
    return (data[..., None] >> shifts & (1 << bits) - 1).flatten(-2)
