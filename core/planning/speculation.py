"""The expected gain of speculative decoding: tokens per pass against cost. Pure, used for planning and at run time.

A pass verifies one certain token and `size` drafted ones. If each drafted token is accepted with probability
`acceptance` and the first rejection ends the run, 1 + a + a^2 + ... + a^size tokens are gained (Leviathan et al. 2023,
equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 8
"""Certain and drafted tokens of one pass: kernels for few rows take so many at little more than the cost of one."""

LIKELY_ACCEPTANCE = 0.8
"""The assumed acceptance before any measurement: that of an int4 copy of SmolLM2-135M is 0.6 to 0.95
(tests/bench/RESULTS.md)."""


@dataclass(frozen=True)
class Prices:
    """Costs of drafting as multiples of a plain pass: a drafted token, and verifying it as one more row."""

    draft: float
    row: float

    def of_pass(self, size: int) -> float:
        """Return the cost of drafting `size` tokens and of the pass that verifies them."""
        return 1 + size * (self.draft + self.row)


def expected_tokens(acceptance: float, size: int) -> float:
    """Return the expected number of tokens of a pass with `size` drafted ones, between 1 and size + 1."""
    return sum(acceptance**number for number in range(size + 1))


def expected_gain(acceptance: float, size: int, prices: Prices) -> float:
    """Return the expected speedup over plain decoding."""
    return expected_tokens(acceptance, size) / prices.of_pass(size)


def best_size(acceptance: float, prices: Prices) -> int:
    """Return the number of drafted tokens with the largest gain."""
    return max(range(1, MOST_ROWS), key=lambda size: expected_gain(acceptance, size, prices))
