"""Whether a cache of experts pays is asked of the clock: some tokens with it and some without, in turn.

Rates say what should be; only time says whether what the cache costs besides (launches, replacing, the memory that
both share) is less than what it saves.
"""

from __future__ import annotations

import statistics

SETTLING = 48
"""Tokens before the trial: what is used most has come by then."""
BLOCK, BLOCKS = 4, 8
"""Tokens with the cache, then as many without; the first of each is not counted."""
AGAIN = 2048
"""Tokens after which it is tried anew: use changes, and so does what else the machine does."""


class CacheTrial:
    """Counts tokens; `rests` says whether the next is computed without the cache."""

    def __init__(self) -> None:
        self._loses = False
        self._begin()

    @property
    def rests(self) -> bool:
        """Whether the next token is to do without: in turn during the trial, then as it ended."""
        block = (self._tokens - SETTLING) // BLOCK
        return self._loses if block >= BLOCKS else block >= 0 and block % 2 == 1

    def note(self, seconds: float) -> None:
        """The next token took so long."""
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
