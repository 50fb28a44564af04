"""Several small numbers in one word or byte, the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor

BYTE = 8


def nibbles(data: Tensor) -> Tensor:
    """(..., n) bytes -> (..., 2 n) numbers of four bits."""
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """(..., n) int32 -> (..., n * 32 / bits) bytes; `bits` divides 8."""
    data = words.contiguous().view(torch.uint8)
    if bits == BYTE:
        return data
    shifts = torch.arange(0, BYTE, bits, dtype=torch.uint8, device=data.device)
    return (data[..., None] >> shifts & (1 << bits) - 1).flatten(-2)
