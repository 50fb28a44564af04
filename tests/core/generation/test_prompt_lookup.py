"""Prompt lookup: drafts of repeated text grow, and never exceed the context."""

from __future__ import annotations

import pytest

from core.generation.prompt_lookup import LEAST_DRAFT, PromptLookup
from core.planning.speculation import MOST_ROWS, Prices
from core.spec import AT_ONCE

FLAT, DEAR = Prices.even(0.0, 0.0), Prices(0.0, (1.1, 1.3, 1.7, 4.1))


@pytest.mark.parametrize(("prices", "longest"), [(FLAT, MOST_ROWS - 1), (DEAR, AT_ONCE - 1)])
def test_repeated_text_is_drafted_ever_further(prices: Prices, longest: int) -> None:
    """Beyond what kernels multiply at a time only where further rows cost little."""
    lookup, ids = PromptLookup(prices), list(range(20)) * 3
    sizes = []
    for _ in range(8):
        drafted = lookup.draft(ids, 100)
        assert drafted == [(ids[-1] + 1 + i) % 20 for i in range(len(drafted))]
        sizes.append(len(drafted))
        lookup.checked(len(drafted), len(drafted), 0.0, prices.of_check(len(drafted)))
    assert sizes[0] == LEAST_DRAFT
    assert sizes[-1] == longest


def test_nothing_is_drafted_beyond_the_context() -> None:
    assert PromptLookup().draft([1, 2, 3, 4, 1, 2, 3], 0) == []
    assert PromptLookup().draft([1, 2, 3, 4, 1, 2, 3], 1) == [4]
