"""Host memory with a callback when it is freed: torch keeps the underlying array while any view of a tensor lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def host_bytes(nbytes: int, alignment: int, freed: Callable[[int], None]) -> Tensor:
    """Allocate (nbytes,) of uint8, aligned to `alignment`; `freed(nbytes)` is called before they are freed.

    The allocation covers whole multiples of `alignment`, so that its pages can be locked without affecting others.
    """
    whole = -(-nbytes // alignment) * alignment
    array = np.empty(whole + alignment, dtype=np.uint8)
    weakref.finalize(array, freed, nbytes).atexit = False
    start = -array.ctypes.data % alignment
    return torch.from_numpy(array[start : start + nbytes])
