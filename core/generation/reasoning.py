"""Separates reasoning from answer in a streamed reply, and finds stop strings, without ever emitting partial marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from core.events import Piece
from core.generation.thought_tags import Marks

Kind = Literal["answer", "reasoning"]

ANY = Marks()


class ReplySplitter:
    """Splits streamed text into Pieces of answer and reasoning; `stopped` is True after a stop string."""

    def __init__(self, stop_strings: Sequence[str] = (), marks: Marks = ANY, closing: str = "") -> None:
        """`closing`: the closing mark of the thought that the prompt opened."""
        self._stops = tuple(text for text in stop_strings if text)
        self._marks = marks
        self._thoughts, self._answers = dict(marks.thoughts), dict(marks.answers)
        self._closing = closing
        self._answer_closing = ""
        self._thought = False  # whether a thought has ended, after which an answer may have marks
        self._held = ""
        self._shown = 0  # number of characters of `_held` that were emitted before
        # White space at the start and after a mark is layout. A thought can only begin there: an answer may well
        # mention "<think>".
        self._at_start = True
        self.stopped = False
        self.stop_text = ""

    @property
    def in_reasoning(self) -> bool:
        """Return whether the text so far ends inside the reasoning."""
        return bool(self._closing)

    def push(self, text: str) -> Iterator[Piece]:
        """Yield the pieces that are certain; text that may be the beginning of a mark is held back."""
        self._held += text
        while not self.stopped and (found := self._first_mark()):
            start, mark = found
            before = self._held[:start]
            yield from self._take(len(before.rstrip() if mark == self._answer_closing else before))
            self._drop(self._held.index(mark) + len(mark))
            self._pass(mark)
        if self.stopped:
            self._held = ""
            return
        yield from self._take(len(self._held) - self._uncertain())

    def finish(self) -> Iterator[Piece]:
        """Yield the text held back at the end of the reply."""
        yield from self._take(len(self._held))

    def replay(self, text: str) -> None:
        """Restore the state after a reply of this text, all of whose text has been emitted."""
        stops, self._stops = self._stops, ()
        for _ in self.push(text):
            pass
        self._stops = stops
        self._shown = len(self._held)

    def _take(self, size: int) -> Iterator[Piece]:
        text, shown = self._held[:size], min(self._shown, size)
        self._drop(size)
        if self._at_start:
            stripped = text.lstrip()
            shown = max(0, shown - (len(text) - len(stripped)))
            text = stripped
        if not text:
            return
        self._at_start = False
        if text[shown:]:
            yield Piece(text[shown:], "reasoning" if self._closing else "answer")

    def _drop(self, size: int) -> None:
        self._held = self._held[size:]
        self._shown = max(0, self._shown - size)

    def _openings(self) -> tuple[str, ...]:
        if self._closing or self._answer_closing or not self._at_start:
            return ()
        answers = self._answers if self._thought else dict(self._marks.own_answers)
        return (*self._thoughts, *answers)

    def _all_marks(self) -> tuple[str, ...]:
        closing = tuple(text for text in (self._closing, self._answer_closing) if text)
        return (*closing, *self._openings(), *self._marks.between, *self._stops)

    def _first_mark(self) -> tuple[int, str] | None:
        leading = len(self._held) - len(self._held.lstrip())
        openings = self._openings()
        found = [(at, -len(m), m) for m in self._all_marks() if (at := self._held.find(m)) >= 0]
        found = [(at, size, m) for at, size, m in found if at <= leading or m not in openings]
        if not found:
            return None
        start, _, mark = min(found)
        return start, mark

    def _pass(self, mark: str) -> None:
        if mark in self._stops:
            self.stopped = True
            self.stop_text = mark
        elif mark == self._closing:
            self._closing = ""
            self._at_start = self._thought = True
        elif mark == self._answer_closing:
            self._answer_closing = ""
            self._at_start = True
        elif mark in self._openings():
            self._open(mark)
            self._at_start = True

    def _open(self, mark: str) -> None:
        if mark in self._thoughts:
            self._closing = self._thoughts[mark]
        else:
            self._answer_closing = self._answers[mark]

    def _uncertain(self) -> int:
        """Return the length of the longest tail that may begin a mark, or that a wrapped answer's end would strip."""
        marks = self._all_marks()
        longest = max(map(len, marks), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-length:]) for mark in marks):
                return self._with_space(length)
        return self._with_space(0)

    def _with_space(self, length: int) -> int:
        if not self._answer_closing:
            return length
        certain = self._held[: len(self._held) - length]
        return length + len(certain) - len(certain.rstrip())
