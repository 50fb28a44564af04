"""Multithreaded RAM copies with non-temporal stores, for destinations this CPU will not read again (pinned buffers).

One thread copies about 10 GB/s; the link of a recent GPU takes two to three times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from core.kernels.native_copy import copy_past_caches, copy_rows_past_caches
from core.units import KIB

PAGE = 4096
LEAST_STRIP = 512 * KIB
"""Minimum bytes per thread."""


class CopyPool:
    """A pool of `threads` threads that copy together; the calling thread is one of them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="copying")

    def copy(self, to: int, start: int, nbytes: int) -> None:
        """Copy `nbytes` between two addresses; the ranges must not overlap."""
        self._share(nbytes, lambda begin, end: copy_past_caches(to + begin, start + begin, end - begin))

    def lay(self, to: int, part: Tensor) -> None:
        """Copy a tensor (rows, ...) whose rows are each contiguous to an address, packing the rows end to end."""
        if part.is_contiguous():
            self.copy(to, part.data_ptr(), part.nbytes)
            return
        start, nbytes, stride = part.data_ptr(), part[0].nbytes, part.stride(0) * part.element_size()

        def some(begin: int, end: int) -> None:
            first, last = -(-begin // nbytes), -(-end // nbytes)  # rows that begin in this strip
            copy_rows_past_caches(to + first * nbytes, start + first * stride, last - first, nbytes, stride)

        self._share(part.nbytes, some)

    def _share(self, nbytes: int, copy: Callable[[int, int], None]) -> None:
        own, *rest = strips(nbytes, self._threads)
        waiting = [self._others.submit(copy, begin, end) for begin, end in rest]
        copy(*own)
        for one in waiting:
            one.result()

    def close(self) -> None:
        """Stop the threads."""
        self._others.shutdown()


def strips(nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """Split `nbytes` into 1 to `most` ranges [begin, end) of nearly equal length."""
    count = max(1, min(most, nbytes // LEAST_STRIP))
    length = -(-nbytes // count // PAGE) * PAGE if count > 1 else nbytes
    for number in range(count):
        yield min(number * length, nbytes), min((number + 1) * length, nbytes)
