"""Lossless speculation by prompt lookup: what followed the same few tokens before is guessed to follow again.

Guessed tokens are computed in one pass with the certain one; each is taken only if it is what would have been drawn
there anyway, so greedy replies and the distribution of sampled ones stay what they are (Leviathan et al. 2023, for a
draft that is certain of itself). Whether guessing pays is measured as it goes: it rests where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

# As many certain and guessed tokens as the kernels for few rows take in one pass.
MOST_ROWS = 8
NGRAM = 3
LEAST_GUESS = 2
# Passes of one token that are timed before the first guess.
TIMED_PASSES = 4
# A guess must have paid this much over the last passes, or guessing rests for REST tokens, longer each time.
WORTHWHILE = 1.03
REST, LONGEST_REST = 24, 768
# How well guessing is taken to pay before it was tried, and when it is tried again.
AT_FIRST, AFTER_REST = 1.5, 1.1
MEMORY = 0.7


class PromptLookup:
    """Guesses for one reply. `passed` after each pass tells it what became of the guess, and how long it took."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where it ended last
        self._indexed = 0
        self._size = LEAST_GUESS
        self._single_s = 0.0
        self._timed = 0
        self._gain = AT_FIRST
        self._resting = 0
        self._rest = REST

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow `ids`; none while there is nothing to go by."""
        if self._resting > 0 or self._timed < TIMED_PASSES:
            self._resting -= 1
            return []
        end = self._find(ids)
        return list(ids[end : end + min(self._size, MOST_ROWS - 1, room)]) if end else []

    def passed(self, guessed: int, taken: int, seconds: float) -> None:
        """One pass is over: of `guessed` tokens `taken` were right."""
        if guessed == 0:
            self._single_s = seconds if self._timed == 0 else MEMORY * self._single_s + (1 - MEMORY) * seconds
            self._timed += 1
            return
        gain = (1 + taken) * self._single_s / seconds if seconds > 0 else 1.0
        self._gain = MEMORY * self._gain + (1 - MEMORY) * gain
        self._size = min(2 * self._size, MOST_ROWS - 1) if taken == guessed else max(LEAST_GUESS, taken + 1)
        if self._gain < WORTHWHILE:
            self._resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
            self._gain = AFTER_REST
        elif taken:
            self._rest = REST

    def _find(self, ids: Sequence[int]) -> int:
        """Where the last tokens of `ids` ended before, 0 if nowhere."""
        # The n-gram at the very end is not entered yet: it would only find itself.
        for end in range(max(self._indexed, NGRAM), len(ids)):
            self._ends[tuple(ids[end - NGRAM : end])] = end
        self._indexed = len(ids)
        return self._ends.get(tuple(ids[-NGRAM:]), 0)
