"""Copies between two addresses with non-temporal stores, by the compiled library if there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from core.kernels.native_abi import library


def copy_past_caches(to: int, start: int, nbytes: int) -> None:
    """Copy between two addresses with non-temporal stores; the GIL is released meanwhile."""
    _copy()(to, start, nbytes)


def copy_rows_past_caches(to: int, start: int, rows: int, nbytes: int, stride: int) -> None:
    """Copy `rows` rows of `nbytes`, spaced `stride` bytes apart, to an address, end to end."""
    if (compiled := library()) is not None:
        compiled.hetegen_copy_rows(to, start, rows, nbytes, stride)
        return
    for row in range(rows):
        ctypes.memmove(to + row * nbytes, start + row * stride, nbytes)


@cache
def _copy() -> Callable[[int, int, int], object]:
    compiled = library()
    copy: Callable[[int, int, int], object] = ctypes.memmove if compiled is None else compiled.hetegen_copy
    return copy
