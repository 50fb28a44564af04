"""Prompt lookup: drafts of repeated text grow, and never exceed the context."""

from __future__ import annotations

from core.generation.prompt_lookup import LEAST_DRAFT, PromptLookup
from core.planning.speculation import MOST_ROWS


def test_repeated_text_is_drafted_ever_further() -> None:
    lookup, ids = PromptLookup(), list(range(20)) * 3
    sizes = []
    for _ in range(5):
        drafted = lookup.draft(ids, 100)
        assert drafted == [(ids[-1] + 1 + i) % 20 for i in range(len(drafted))]
        sizes.append(len(drafted))
        lookup.checked(len(drafted), len(drafted), 0.0, 1.0)
    assert sizes[0] == LEAST_DRAFT
    assert sizes[-1] == MOST_ROWS - 1


def test_nothing_is_drafted_beyond_the_context() -> None:
    assert PromptLookup().draft([1, 2, 3, 4, 1, 2, 3], 0) == []
    assert PromptLookup().draft([1, 2, 3, 4, 1, 2, 3], 1) == [4]
