"""Drafting by prompt lookup: after a repeated n-gram, propose the tokens that followed it before. Costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from core.generation.guesses import CheckTimes
from core.generation.speculation import Guess
from core.planning.speculation import LIKELY_ACCEPTANCE, Prices, best_size
from core.spec import AT_ONCE

NGRAM = 3
LEAST_DRAFT = 2
# The decay per check of the share of accepted tokens, and the number of tokens that its prior counts as.
MEMORY, ASSUMED = 0.8, 4.0
# Before any measurement: the prices of a model on the CPU.
FIRST_PRICES = Prices.even(0.0, 0.05)


class PromptLookup:
    """A Drafter for one reply. Its drafts grow while they are accepted, beyond AT_ONCE rows only where that pays."""

    name = "prompt lookup"

    def __init__(self, prices: Prices = FIRST_PRICES) -> None:
        self._checks = CheckTimes(prices)
        self._accepted, self._tried = ASSUMED * LIKELY_ACCEPTANCE, ASSUMED
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> end of its last occurrence
        self._indexed = 0
        self._size = LEAST_DRAFT

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """No-op: the index is built on first use."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the tokens that followed the previous occurrence of the last n-gram of `ids`."""
        end = self._find(ids)
        following = ids[end : end + min(self._size, room)] if end else ()
        return list(takewhile(lambda id: id >= 0, following))  # pictures are never drafted

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Double the draft size if all tokens were accepted; otherwise propose one more than was accepted."""
        self._checks.add(drafted, check)
        self._accepted = MEMORY * self._accepted + taken
        self._tried = MEMORY * self._tried + min(taken + 1, drafted)
        self._size = min(2 * self._size, self._most()) if taken == drafted else max(LEAST_DRAFT, taken + 1)

    def _most(self) -> int:
        """Return the most tokens worth drafting."""
        return max(AT_ONCE - 1, best_size(self._accepted / self._tried, self._checks.of))

    def _find(self, ids: Sequence[int]) -> int:
        """Return the end of the previous occurrence of the last n-gram of `ids`; 0 if there is none."""
        # The n-gram at the end is not indexed yet: it would only find itself.
        for end in range(max(self._indexed, NGRAM), len(ids)):
            self._ends[tuple(ids[end - NGRAM : end])] = end
        self._indexed = len(ids)
        return self._ends.get(tuple(ids[-NGRAM:]), 0)
