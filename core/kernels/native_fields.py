"""Fields of the structures that our C library reads, and addresses as their values.

Each structure is declared beside its call, and mirrors one in C of the same fields in the same order.
"""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from core.kernels.native_abi import PART_FIELDS

INT, ADDRESS = ctypes.c_int64, ctypes.c_void_p
Field = tuple[str, Any]


def numbers(*names: str) -> list[Field]:
    """Return fields of whole numbers."""
    return [(name, INT) for name in names]


def reals(*names: str) -> list[Field]:
    """Return fields of floating-point numbers."""
    return [(name, ctypes.c_double) for name in names]


def addresses(*names: str) -> list[Field]:
    """Return fields of addresses."""
    return [(name, ADDRESS) for name in names]


def weights(**counts: int) -> list[Field]:
    """Return fields of so many weights each, or of ranges of their rows, as `Parts` describes them."""
    return [(name, INT * (count * PART_FIELDS)) for name, count in counts.items()]


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor (...); None if there is none."""
    return None if tensor is None else tensor.data_ptr()
