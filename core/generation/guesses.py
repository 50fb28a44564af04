"""Acceptance statistics and costs of a draft model, and the decision whether drafting one more token pays.

Tokens to which the draft model gives a high probability are accepted more often. A draft therefore continues while the
expected gain of the next token exceeds its cost at the current decoding speed: drafts are long in predictable text and
short elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.planning.speculation import LIKELY_ACCEPTANCE, MOST_ROWS, Prices
from core.spec import AT_ONCE

# The decay of the statistics per check and per guess, of the price of a draft, and of the times of checks.
MEMORY, PRICE_MEMORY, CHECK_MEMORY = 0.95, 0.7, 0.9
# Longer times than this multiple of the expected one count as this: other programs computed meanwhile.
MOST_LATE = 1.5
# The number of confidence bins, and the number of guesses that each bin's prior counts as.
STEPS, ASSUMED = 8, 4.0
# The number of checks of one token, and of the most, that the assumed times count as.
ASSUMED_CHECKS = 0.1
# Before any measurement: the prices of a 4-bit copy of the model on the CPU.
FIRST_PRICES = Prices.even(0.45, 0.05)
# The least that a drafted token is assumed to add to a check, as a multiple of a plain pass.
LEAST_ROW = 0.002


class Guesses:
    """Acceptance statistics, kept across replies. A confidence is the draft model's own probability of its guess."""

    def __init__(self, prices: Prices = FIRST_PRICES) -> None:
        self._right = [ASSUMED * (2 + (step + 0.5) / STEPS) / 3 for step in range(STEPS)]
        self._all = [ASSUMED] * STEPS
        self._accepted, self._tried = ASSUMED * LIKELY_ACCEPTANCE, ASSUMED
        self._draft = prices.draft
        self._checks = CheckTimes(prices)
        self._tokens = self._spent = 1.0

    def chance(self, confidence: float) -> float:
        """Return the acceptance rate of guesses of this confidence, given that all earlier ones were accepted."""
        step = _step(confidence)
        return self._right[step] / self._all[step]

    def pays(self, confidences: Sequence[float]) -> bool:
        """Return whether one more guess is worth its price after guesses of these confidences."""
        reached = self._accepted / self._tried
        for confidence in confidences:
            reached *= self.chance(confidence)
        rate = max(1.0, self._tokens / self._spent)
        count, checks = len(confidences), self._checks
        return count < MOST_ROWS - 1 and reached > rate * (self._draft + checks.of(count + 1) - checks.of(count))

    def learn(self, confidences: Sequence[float], taken: int, draft: float, check: float) -> None:
        """Learn from a check that accepted the first `taken` guesses.

        `draft` and `check` are the times of drafting and checking, as multiples of a plain pass.
        """
        for number, confidence in enumerate(confidences[: taken + 1]):
            step, right = _step(confidence), float(number < taken)
            self._right[step] += right
            self._all[step] += 1
            self._accepted = MEMORY * self._accepted + right
            self._tried = MEMORY * self._tried + 1
        self._tokens = MEMORY * self._tokens + 1 + taken
        self._spent = MEMORY * self._spent + draft + check
        count = max(len(confidences), 1)
        one = min(draft / count, MOST_LATE * self._draft)
        self._draft = PRICE_MEMORY * self._draft + (1 - PRICE_MEMORY) * one
        self._checks.add(count, check)


class CheckTimes:
    """The time of a check, as a multiple of a plain pass, as a line over what its drafted tokens should add.

    It is fitted to the last checks by least squares. A check of a single token already takes longer than a plain pass,
    often more so than each further token.
    """

    def __init__(self, prices: Prices) -> None:
        """`prices`: the assumed times."""
        self._prices = prices
        ends = [_moments(self._added(count), 1 + self._added(count)) for count in (1, AT_ONCE - 1)]
        self._assumed = [ASSUMED_CHECKS * (one + other) for one, other in zip(*ends, strict=True)]
        self._seen = [0.0] * len(self._assumed)

    def of(self, count: int) -> float:
        """Return the expected time of a check of so many tokens."""
        first, slope = self._line()
        return first + slope * self._added(count)

    def add(self, count: int, time: float) -> None:
        """Count a check of so many tokens that took so many plain passes."""
        moments = _moments(self._added(count), min(time, MOST_LATE * self.of(count)))
        self._seen = [CHECK_MEMORY * old + new for old, new in zip(self._seen, moments, strict=True)]

    def _added(self, count: int) -> float:
        """Return what so many drafted tokens should add."""
        return max(self._prices.of_check(count) - 1, LEAST_ROW * count)

    def _line(self) -> tuple[float, float]:
        """Return the time without drafted tokens, and the slope, which is not negative."""
        checks, added, times, squares, products = map(sum, zip(self._assumed, self._seen, strict=True))
        slope = max(0.0, (checks * products - added * times) / (checks * squares - added * added))
        return (times - slope * added) / checks, slope


def _moments(added: float, time: float) -> tuple[float, ...]:
    return 1.0, added, time, added * added, added * time


def _step(confidence: float) -> int:
    return min(int(confidence * STEPS), STEPS - 1)
