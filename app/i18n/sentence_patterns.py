"""Sentences that were put together elsewhere, found again by their pattern and said in another language.

The engine speaks English and knows no window: its errors and plans are finished sentences, with figures and names in
them. A table has each of them once, with {} for what changes; what stands there may be such a sentence itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

GAP = "{}"
SECOND = re.compile(r"\{\} [A-Z][a-z]")


class Sentences:
    """English patterns to those of one language: "{} of {} weight files are missing."."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._whole = {text: said for text, said in table.items() if GAP not in text}
        self._patterns = [(_pattern(text), table[text]) for text in sorted(table, key=_rank) if GAP in text]

    def translate(self, text: str) -> str | None:
        """The text in the language; None where there is no pattern for it."""
        if text in self._whole:
            return self._whole[text]
        for pattern, said in self._patterns:
            if found := pattern.fullmatch(text):
                return said.format(*(self.translate(part) or part for part in found.groups()))
        return None


def _rank(text: str) -> tuple[bool, int]:
    """What is tried first: a second sentence after a whole one, then what has the most words of its own."""
    return not SECOND.match(text), -len(text.replace(GAP, ""))


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(re.escape(part) for part in text.split(GAP)), re.DOTALL)
