"""The size of 8-bit keys and values: a byte per column, then a two-byte scale for each 32 columns."""

from __future__ import annotations

import torch

PACKED = torch.int8
"""The dtype of tensors of packed rows."""
GROUP, SCALE_BYTES = 32, 2
MOST_COLUMNS = 1024
"""Columns of the widest head that the library packs."""


def packed_width(columns: int) -> int:
    """Return the bytes of a packed row of `columns` columns."""
    return columns + -(-columns // GROUP) * SCALE_BYTES


def unpacked(width: int) -> int:
    """Return the columns of a packed row of `width` bytes."""
    return width - -(-width // (GROUP + SCALE_BYTES)) * SCALE_BYTES
