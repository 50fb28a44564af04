"""Finds the place in a text that a search hit's snippet was taken from, although the text has lost its Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Sought:
    """What is looked for. `words`: those of the snippet from the first found one on; `found`: the found text itself."""

    words: tuple[str, ...]
    found: str

    @classmethod
    def of(cls, snippet: str, start: str, end: str) -> Sought:
        """Take it from a snippet with the marks `start` and `end` around what was found."""
        _, _, rest = snippet.partition(start)
        return cls(tuple(word.casefold() for word in _WORD.findall(rest)), rest.partition(end)[0])


@dataclass(frozen=True)
class Place:
    """A place in a text. `words`: how many of the sought words are there in a row."""

    start: int
    words: int


def find_place(text: str, sought: Sought) -> Place | None:
    """Return the first of the places with most of the sought words, None if not even the first is in the text."""
    found = list(_WORD.finditer(text))
    words = [word.group().casefold() for word in found]
    places = [
        Place(found[at].start(), _in_a_row(words[at:], sought.words))
        for at, word in enumerate(words)
        if sought.words and word == sought.words[0]
    ]
    # In a language without spaces, what was found may be a part of a word.
    inside = text.lower().find(sought.found.lower()) if sought.found else -1
    return max(places, key=lambda place: place.words, default=Place(inside, 0) if inside >= 0 else None)


def _in_a_row(words: Sequence[str], sought: Sequence[str]) -> int:
    most = min(len(words), len(sought))
    return next((at for at in range(most) if words[at] != sought[at]), most)
