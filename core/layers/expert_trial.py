"""Measures whether a cache of experts pays, by alternating between tokens with and without it.

Calculated rates cannot tell whether the cache's side costs (launches, replacements, shared memory bandwidth) are below
its savings; only timing can.
"""

from __future__ import annotations

import statistics

SETTLING = 48
"""Number of tokens before the trial, in which the most used experts are cached."""
BLOCK, BLOCKS = 4, 8
"""Number of tokens with the cache, then without; the first of each block is not timed."""
AGAIN = 2048
"""Number of tokens after which the trial is repeated, because routing and the machine's load change."""


class CacheTrial:
    """Counts tokens; `rests` says whether the next is computed without the cache."""

    def __init__(self) -> None:
        self._loses = False
        self._begin()

    @property
    def rests(self) -> bool:
        """Return whether the next token does without the cache: alternating during the trial, then by its outcome."""
        block = (self._tokens - SETTLING) // BLOCK
        return self._loses if block >= BLOCKS else block >= 0 and block % 2 == 1

    def note(self, seconds: float) -> None:
        """Record the seconds of the next token."""
        at = self._tokens - SETTLING
        if 0 <= at < BLOCK * BLOCKS and at % BLOCK:
            self._times[self.rests].append(seconds)
        self._tokens += 1
        if self._tokens == SETTLING + BLOCK * BLOCKS:
            self._loses = statistics.median(self._times[True]) < statistics.median(self._times[False])
        if self._tokens == AGAIN:
            self._begin()

    def _begin(self) -> None:
        self._tokens = 0
        self._times: dict[bool, list[float]] = {False: [], True: []}
