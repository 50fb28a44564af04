"""Drafts by prompt lookup: what followed the same few tokens before is proposed to follow again. Costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from core.generation.speculation import Guess
from core.planning.speculation import MOST_ROWS

NGRAM = 3
LEAST_DRAFT = 2


class PromptLookup:
    """A Drafter for one reply; its drafts grow while they come true."""

    name = "prompt lookup"

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where it ended last
        self._indexed = 0
        self._size = LEAST_DRAFT

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """No-op: the index is made when it is first asked."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """What followed the last tokens of `ids` when they stood there before."""
        end = self._find(ids)
        following = ids[end : end + min(self._size, MOST_ROWS - 1, room)] if end else ()
        return list(takewhile(lambda id: id >= 0, following))  # a picture is not drafted

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Double the draft where all of it was right, else propose one more than was."""
        self._size = min(2 * self._size, MOST_ROWS - 1) if taken == drafted else max(LEAST_DRAFT, taken + 1)

    def _find(self, ids: Sequence[int]) -> int:
        """Where the last tokens of `ids` ended before, 0 if nowhere."""
        # The n-gram at the very end is not entered yet: it would only find itself.
        for end in range(max(self._indexed, NGRAM), len(ids)):
            self._ends[tuple(ids[end - NGRAM : end])] = end
        self._indexed = len(ids)
        return self._ends.get(tuple(ids[-NGRAM:]), 0)
