"""Allocates weights on 2 MiB pages where the system grants them on request (Linux, transparent huge pages).

With 4 KiB pages, address translation limits a core that streams weights: measured 24 - 38 GB/s against 33 - 51
(tests/bench/RESULTS.md, "Large pages"). Weights in memory-mapped files keep the page size of the system's page cache.
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
"""Small tensors share chunks of this size; a chunk is freed once none of its tensors is in use."""
ALIGNMENT = 64


class _Chunks:
    """A bump allocator for small tensors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, nbytes: int) -> Tensor:
        """Return an uninitialised tensor (nbytes,) of uint8."""
        with self._lock:
            if self._used + nbytes > len(self._chunk):
                self._chunk, self._used = _mapped(CHUNK), 0
            begin = self._used
            self._used += -(-nbytes // ALIGNMENT) * ALIGNMENT
            return self._chunk[begin : begin + nbytes]


def empty_on_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor (*shape) in RAM, for weights that live as long as their model."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if not (nbytes and hasattr(mmap, "MADV_HUGEPAGE")):
        return torch.empty(tuple(shape), dtype=dtype)
    memory = _mapped(nbytes) if nbytes >= CHUNK // 2 else _chunks().take(nbytes)
    return memory.view(dtype).view(tuple(shape))


@cache
def _chunks() -> _Chunks:
    return _Chunks()


def _mapped(nbytes: int) -> Tensor:
    """Return (nbytes,) of uint8 in a mapping of its own, aligned to a large page."""
    memory = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages: small pages work as well
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % PAGE
    return whole[begin : begin + nbytes]
