"""Finds the passages of a long document that fit a question, with SQLite's FTS5 (BM25), in memory.

There is one index per document, so that a word's rarity counts within the document that is asked about.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from core.documents.document import Document

LONGEST = 900
"""Maximum length of a passage in characters: enough for a thought, so that many passages fit into one prompt."""
CANDIDATES = 400
MOST_WORDS = 60
"""Maximum number of a question's words; SQLite limits the length of queries."""
BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?。！？…]\s*"), re.compile(r"\s"))
"""Where a passage may end, the best first."""
WORD = re.compile(r"\w+")
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Scripts without spaces between words, and Korean with its agglutinated words: indexed as pairs of letters."""
ENDINGS = re.compile(r"(?<=\w{4})(?:ungen|ung|ies|ing|ern|en|er|em|es|ed|e|s|n|y)$")
STOP_WORDS = (
    "a about an and any are as at be been but by can could did do does for from had has have how i if in into is it "
    "its me more my no not of on or our please shall should so some such tell than that the their them then there "
    "these they this those to was we were what when where which who whom whose why will with would you your aber alle "
    "als am an auch auf aus bei bin bis bitte da das dass dem den der des die dies diese diesem diesen dieser dieses "
    "doch du durch ein eine einem einen einer eines er es etwas für gibt hat habe haben hier ich ihm ihn ihr im in "
    "ist ja kann kein keine man mehr mein mich mir mit nach nicht noch nur ob oder ohne sag sein seine sich sie sind "
    "so soll über um und uns unter vom von vor war waren warum was welche welchem welchen welcher welches wenn wer "
    "werden wie wieder will wir wird wo worden wurde wurden zu zum zur "
)
"""Common English and German words, which say nothing about a question's subject."""


class Span(NamedTuple):
    """A part of a document's page, counted from 0: characters [start, end)."""

    page: int
    start: int
    end: int


class PassageIndex:
    """The passages of one document and the words in them. May be created in one thread and used in another."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.spans = tuple(spans(document))
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(words, content='', tokenize=\"unicode61 remove_diacritics 2\")"
        )
        rows = (
            (place, _spelled(document.pages[one.page][one.start : one.end])) for place, one in enumerate(self.spans)
        )
        self._database.executemany("INSERT INTO passages(rowid, words) VALUES(?, ?)", rows)

    def find(
        self, question: str, budget: int, price: Callable[[str], int], seen: Collection[Span] = ()
    ) -> tuple[Span, ...]:
        """Return the passages that fit the question best, in document order; the sum of their `price` is at most
        `budget`.

        Passages in `seen` are skipped, except the best one. For a question about the whole document, returns the
        beginning and passages spread over it.
        """
        best = self._best(question)
        places = best[:1] + [place for place in best[1:] if self.spans[place] not in seen] or self._throughout(seen)
        chosen: list[int] = []
        for place in places:
            cost = price(self.text(self.spans[place]))
            if cost <= budget:
                chosen.append(place)
                budget -= cost
        return tuple(self.spans[place] for place in sorted(chosen))

    def text(self, span: Span) -> str:
        """Return the text of a passage."""
        return self._document.pages[span.page][span.start : span.end]

    def close(self) -> None:
        """Free the memory."""
        self._database.close()

    def _best(self, question: str) -> list[int]:
        if not (query := query_of(question)):
            return []
        rows = self._database.execute(
            "SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?", (query, CANDIDATES)
        )
        return [place for (place,) in rows]

    def _throughout(self, seen: Collection[Span]) -> list[int]:
        """Return indices of passages not in `seen`, spread ever more densely over the document, the first passage
        first."""
        order, step = dict.fromkeys([0]), len(self.spans)
        while step > 1 and len(order) < CANDIDATES:
            step = -(-step // 2)
            order.update(dict.fromkeys(range(0, len(self.spans), step)))
        return [place for place in order if place < len(self.spans) and self.spans[place] not in seen]


def query_of(question: str) -> str:
    """Return the FTS5 query for a question; "" if it has only stop words."""
    common = set(STOP_WORDS.split())
    words = [word for word in dict.fromkeys(WORD.findall(_spelled(question).lower())) if word not in common]
    return " OR ".join(map(_term, words[:MOST_WORDS]))


def spans(document: Document) -> Iterator[Span]:
    """Yield the passages of a document, page by page, without blank ones."""
    for number, page in enumerate(document.pages):
        start = 0
        while start < len(page):
            end = _end(page, start)
            if not page[start:end].isspace():
                yield Span(number, start, end)
            start = end


def joined(found: Iterable[Span]) -> list[Span]:
    """Sort spans and merge those that touch."""
    result: list[Span] = []
    for span in sorted(found):
        last = result[-1] if result else None
        if last is not None and last.page == span.page and span.start <= last.end:
            result[-1] = Span(last.page, last.start, max(last.end, span.end))
        else:
            result.append(span)
    return result


def _term(word: str) -> str:
    """Return a query for the word itself, or with less weight for words with its stem: plurals, cases, tenses."""
    stem = ENDINGS.sub("", word)
    return f'"{word}" OR "{stem}"*' if len(stem) >= 4 else f'"{word}"'


def _spelled(text: str) -> str:
    """Return the text as it is indexed: scripts without spaces as overlapping pairs of letters."""
    return UNSPACED.sub(lambda run: f" {' '.join(_pairs(run[0]))} ", text)


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]


def _end(page: str, start: int) -> int:
    """Return the end of a passage that begins at `start`: the best break in its second half."""
    if len(page) - start <= LONGEST:
        return len(page)
    for kind in BREAKS:
        found = [match.end() for match in kind.finditer(page, start + LONGEST // 2, start + LONGEST)]
        if found:
            return found[-1]
    return start + LONGEST
