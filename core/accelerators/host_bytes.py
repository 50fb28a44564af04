"""Host memory whose end can be noticed: torch keeps the array beneath for as long as any view of the tensor lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def host_bytes(nbytes: int, alignment: int, freed: Callable[[int], None]) -> Tensor:
    """(nbytes,) of uint8 beginning at a multiple of `alignment`; `freed(nbytes)` is called before they are given back.

    Whole multiples of the alignment belong to it, so that pages of their own can be locked.
    """
    whole = -(-nbytes // alignment) * alignment
    array = np.empty(whole + alignment, dtype=np.uint8)
    weakref.finalize(array, freed, nbytes).atexit = False
    start = -array.ctypes.data % alignment
    return torch.from_numpy(array[start : start + nbytes])
