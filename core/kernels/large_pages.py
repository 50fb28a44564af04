"""Memory in pages of 2 MiB for what a token reads whole, where the system gives them out when asked (Linux).

With pages of 4 KiB a core that streams weights waits for the translation of their addresses: measured 24 - 38 GB/s
against 33 - 51 (tests/bench/RESULTS.md, "Large pages"). Weights that lie in mapped files have them as the system's
cache has them.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

PAGE = 2 << 20
CHUNK = 16 * PAGE
"""Small tensors share pieces of so many bytes; one is given back when nothing in it is used any more."""
ALIGNMENT = 64


class _Chunks:
    """Hands out room for small tensors, one behind the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, nbytes: int) -> Tensor:
        """(nbytes,) of uint8."""
        with self._lock:
            if self._used + nbytes > len(self._chunk):
                self._chunk, self._used = _mapped(CHUNK), 0
            begin = self._used
            self._used += -(-nbytes // ALIGNMENT) * ALIGNMENT
            return self._chunk[begin : begin + nbytes]


def empty_on_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor (*shape) in RAM, for weights that live as long as their model."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if not (nbytes and hasattr(mmap, "MADV_HUGEPAGE")):
        return torch.empty(tuple(shape), dtype=dtype)
    memory = _mapped(nbytes) if nbytes >= CHUNK // 2 else _chunks().take(nbytes)
    return memory.view(dtype).view(tuple(shape))


@cache
def _chunks() -> _Chunks:
    return _Chunks()


def _mapped(nbytes: int) -> Tensor:
    """(nbytes,) of uint8 in memory of its own, from the beginning of a large page on."""
    memory = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: small pages serve as well
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % PAGE
    return whole[begin : begin + nbytes]
