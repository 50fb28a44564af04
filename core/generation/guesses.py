"""What was learned of a model that drafts: how often its guesses come true, and what they cost.

A guess that its model finds likely comes true more often. So a draft goes on while what it may gain is more than what
its next token costs, at the speed that is reached: it is long where the text is plain, and short where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.planning.speculation import LIKELY_ACCEPTANCE, MOST_ROWS, Prices

# The weight of what was seen before at each check.
MEMORY, PRICE_MEMORY = 0.95, 0.7
# Confidences that are taken together, and how many guesses what is assumed of them counts as.
STEPS, ASSUMED = 8, 4.0
# Before anything was seen: as a copy in 4 bits of a model on the CPU.
FIRST_PRICES = Prices(0.45, 0.05)


class Guesses:
    """Kept from one reply to the next. Confidences are probabilities by the scores that the guesses were made of."""

    def __init__(self, prices: Prices = FIRST_PRICES) -> None:
        self._right = [ASSUMED * (2 + (step + 0.5) / STEPS) / 3 for step in range(STEPS)]
        self._all = [ASSUMED] * STEPS
        self._acceptance = LIKELY_ACCEPTANCE
        self._prices = prices
        self._tokens = self._spent = 1.0

    def chance(self, confidence: float) -> float:
        """How often a guess of this confidence comes true, if all before it did."""
        step = _step(confidence)
        return self._right[step] / self._all[step]

    def pays(self, confidences: Sequence[float]) -> bool:
        """Whether another guess is worth its price behind guesses of these confidences."""
        reached = self._acceptance
        for confidence in confidences:
            reached *= self.chance(confidence)
        rate = max(1.0, self._tokens / self._spent)
        return len(confidences) < MOST_ROWS - 1 and reached > rate * (self._prices.draft + self._prices.row)

    def learn(self, confidences: Sequence[float], taken: int, draft: float, check: float) -> None:
        """The first `taken` guesses came true; their seconds and those of the check as multiples of a plain pass."""
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
