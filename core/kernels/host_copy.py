"""Multithreaded copies in RAM past the caches, as into pinned buffers, which this CPU will not read again.

One thread moves some 10 GB/s; the link of a recent card takes two or three times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from core.kernels.native_library import copy_past_caches
from core.units import KIB

PAGE = 4096
LEAST_STRIP = 512 * KIB
"""Minimum bytes per thread."""


class CopyPool:
    """`threads` that copy together, the caller among them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._others = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="copying")

    def copy(self, to: int, start: int, nbytes: int) -> None:
        """Copy between addresses that do not overlap."""
        own, *rest = strips(nbytes, self._threads)
        waiting = [self._others.submit(copy_past_caches, to + begin, start + begin, end - begin) for begin, end in rest]
        copy_past_caches(to + own[0], start + own[0], own[1] - own[0])
        for one in waiting:
            one.result()

    def close(self) -> None:
        """End the threads."""
        self._others.shutdown()


def strips(nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """`nbytes` in at most this many ranges of nearly the same length, at least one."""
    count = max(1, min(most, nbytes // LEAST_STRIP))
    length = -(-nbytes // count // PAGE) * PAGE if count > 1 else nbytes
    for number in range(count):
        yield min(number * length, nbytes), min((number + 1) * length, nbytes)
