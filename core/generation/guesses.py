"""Acceptance statistics and costs of a draft model, and the decision whether drafting one more token pays.

Tokens to which the draft model gives a high probability are accepted more often. A draft therefore continues while the
expected gain of the next token exceeds its cost at the current decoding speed: drafts are long in predictable text and
short elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.planning.speculation import LIKELY_ACCEPTANCE, MOST_ROWS, Prices

# The decay per check of the statistics, and of the prices.
MEMORY, PRICE_MEMORY = 0.95, 0.7
# The number of confidence bins, and the number of guesses that each bin's prior counts as.
STEPS, ASSUMED = 8, 4.0
# Before any measurement: the prices of a 4-bit copy of the model on the CPU.
FIRST_PRICES = Prices(0.45, 0.05)


class Guesses:
    """Acceptance statistics, kept across replies. A confidence is the draft model's own probability of its guess."""

    def __init__(self, prices: Prices = FIRST_PRICES) -> None:
        self._right = [ASSUMED * (2 + (step + 0.5) / STEPS) / 3 for step in range(STEPS)]
        self._all = [ASSUMED] * STEPS
        self._acceptance = LIKELY_ACCEPTANCE
        self._prices = prices
        self._tokens = self._spent = 1.0

    def chance(self, confidence: float) -> float:
        """Return the acceptance rate of guesses of this confidence, given that all earlier ones were accepted."""
        step = _step(confidence)
        return self._right[step] / self._all[step]

    def pays(self, confidences: Sequence[float]) -> bool:
        """Return whether one more guess is worth its price after guesses of these confidences."""
        reached = self._acceptance
        for confidence in confidences:
            reached *= self.chance(confidence)
        rate = max(1.0, self._tokens / self._spent)
        return len(confidences) < MOST_ROWS - 1 and reached > rate * (self._prices.draft + self._prices.row)

    def learn(self, confidences: Sequence[float], taken: int, draft: float, check: float) -> None:
        """Learn from a check that accepted the first `taken` guesses.

        `draft` and `check` are the times of drafting and checking, as multiples of a plain pass.
        """
        for number, confidence in enumerate(confidences[: taken + 1]):
            step, right = _step(confidence), float(number < taken)
            self._right[step] += right
            self._all[step] += 1
            self._acceptance = MEMORY * self._acceptance + (1 - MEMORY) * right
        self._tokens = MEMORY * self._tokens + 1 + taken
        self._spent = MEMORY * self._spent + draft + check
        count = max(len(confidences), 1)
        self._prices = _mixed(self._prices, Prices(draft / count, max(0.0, check - 1) / count))


def _step(confidence: float) -> int:
    return min(int(confidence * STEPS), STEPS - 1)


def _mixed(before: Prices, now: Prices) -> Prices:
    draft = PRICE_MEMORY * before.draft + (1 - PRICE_MEMORY) * now.draft
    return Prices(draft, PRICE_MEMORY * before.row + (1 - PRICE_MEMORY) * now.row)
