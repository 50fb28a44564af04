"""The place of a search hit in a rendered text."""

from __future__ import annotations

import pytest

from app.text.places import Sought, find_place

TEXT = "The sea is deep. The sea at noon is blue, das Meer ist groß; 我喜欢夏天 and 夏天来了."


@pytest.mark.parametrize(
    ("snippet", "place"),
    [
        ("deep. The **[sea]** at noon", "sea at noon"),
        ("[The] `sea` _is_", "The sea is deep"),
        ("ist [groß]; x", "groß"),
        ("[夏天]来了", "夏天 and"),
        ("the [SEA]", "sea is deep"),
    ],
)
def test_the_place_with_most_words_in_a_row_is_found(snippet: str, place: str) -> None:
    found = find_place(TEXT, Sought.of(snippet, "[", "]"))
    assert found is not None
    assert TEXT[found.start :].startswith(place)


@pytest.mark.parametrize("snippet", ["[lake]", "no mark", "", "[]"])
def test_what_is_not_there_has_no_place(snippet: str) -> None:
    assert find_place(TEXT, Sought.of(snippet, "[", "]")) is None
