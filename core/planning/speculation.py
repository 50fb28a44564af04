"""What drafting ahead is worth: expected tokens per pass against its cost. Pure arithmetic, used before and during.

A pass checks one certain token and `size` drafted ones. If each drafted token is right with probability `acceptance`
and the first wrong one ends the run, 1 + a + a^2 + ... + a^size tokens are gained (Leviathan et al. 2023, equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 8
"""Certain and drafted tokens of one pass: what the kernels for few rows take at the price of little more than one."""

LIKELY_ACCEPTANCE = 0.8
"""How often a drafted token is taken to be right until it was seen: an int4 copy of SmolLM2-135M is in 0.6 to 0.95 of
its tokens (tests/bench/RESULTS.md)."""


@dataclass(frozen=True)
class Prices:
    """What drafting costs as multiples of a plain pass: a drafted token, and checking it as one row more."""

    draft: float
    row: float

    def of_pass(self, size: int) -> float:
        """A pass that checks `size` drafted tokens, and the drafting of them."""
        return 1 + size * (self.draft + self.row)


def expected_tokens(acceptance: float, size: int) -> float:
    """Tokens that a pass with `size` drafted ones gives on average, between 1 and size + 1."""
    return sum(acceptance**number for number in range(size + 1))


def expected_gain(acceptance: float, size: int, prices: Prices) -> float:
    """How many times as fast as one token after the other."""
    return expected_tokens(acceptance, size) / prices.of_pass(size)


def best_size(acceptance: float, prices: Prices) -> int:
    """The number of tokens to draft that gains most."""
    return max(range(1, MOST_ROWS), key=lambda size: expected_gain(acceptance, size, prices))
