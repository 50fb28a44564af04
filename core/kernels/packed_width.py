"""How many bytes keys and values of 8 bits take: a row of so many columns, then a scale of two bytes for each 32."""

from __future__ import annotations

import torch

PACKED = torch.int8
"""The type that tensors of packed rows have."""
GROUP, SCALE_BYTES = 32, 2
MOST_COLUMNS = 1024
"""Columns of the widest head that the library packs."""


def packed_width(columns: int) -> int:
    """Bytes of a packed row."""
    return columns + -(-columns // GROUP) * SCALE_BYTES


def unpacked(width: int) -> int:
    """Columns of a row that takes so many bytes."""
    return width - -(-width // (GROUP + SCALE_BYTES)) * SCALE_BYTES
