"""The expected gain of speculative decoding: tokens per pass against cost. Pure, used for planning and at run time.

A pass verifies one certain token and `size` drafted ones. If each drafted token is accepted with probability
`acceptance` and the first rejection ends the run, 1 + a + a^2 + ... + a^size tokens are gained (Leviathan et al. 2023,
equation 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from core.spec import BUCKET_LIMITS, FEW

MOST_ROWS = BUCKET_LIMITS[FEW]
"""Certain and drafted tokens of one pass: in one bucket all use the same kernels and the same division of rows."""
CHECKED = (2, 4, 8, MOST_ROWS)
"""Numbers of rows for which passes are priced; prices between them are interpolated."""

LIKELY_ACCEPTANCE = 0.8
"""The assumed acceptance before any measurement: that of an int4 copy of SmolLM2-135M is 0.6 to 0.95
(tests/bench/RESULTS.md)."""


@dataclass(frozen=True)
class Prices:
    """Costs as multiples of a plain pass: `draft`, a drafted token; `checks`, passes over CHECKED rows.

    Rows cost more where kernels begin another turn, and less where they touch the same experts as others.
    """

    draft: float
    checks: tuple[float, ...]

    @staticmethod
    def even(draft: float, row: float) -> Prices:
        """Return prices at which each further row costs the same."""
        return Prices(draft, tuple(1 + (rows - 1) * row for rows in CHECKED))

    def of_check(self, size: int) -> float:
        """Return the cost of a pass that verifies `size` drafted tokens, at least that of fewer."""
        points = list(zip((1, *CHECKED), accumulate((1.0, *self.checks), max), strict=False))
        for (rows, cost), (more, higher) in pairwise(points):
            if size + 1 <= more:
                return cost + (size + 1 - rows) / (more - rows) * (higher - cost)
        return points[-1][1]

    def of_pass(self, size: int) -> float:
        """Return the cost of drafting `size` tokens and of the pass that verifies them."""
        return size * self.draft + self.of_check(size)


def expected_tokens(acceptance: float, size: int) -> float:
    """Return the expected number of tokens of a pass with `size` drafted ones, between 1 and size + 1."""
    return sum(acceptance**number for number in range(size + 1))


def expected_gain(acceptance: float, size: int, cost: Callable[[int], float]) -> float:
    """Return the expected speedup over plain decoding; `cost`: of a pass with so many drafted tokens."""
    return expected_tokens(acceptance, size) / cost(size)


def best_size(acceptance: float, cost: Callable[[int], float]) -> int:
    """Return the number of drafted tokens with the largest gain; `cost`: of a pass with so many."""
    return max(range(1, MOST_ROWS), key=lambda size: expected_gain(acceptance, size, cost))
