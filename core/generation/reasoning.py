"""Tells a model's reasoning from its answer while both stream, and finds stop strings, never showing half a marker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from core.events import Piece

Kind = Literal["answer", "reasoning"]

# Opening and closing marker of each family's reasoning: Qwen, DeepSeek and most others; Mistral; gpt-oss; Gemma 4.
MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)
# Written between two channels by gpt-oss; no part of what people read.
NOISE = ("<|end|>", "<|start|>assistant", "<|channel|>commentary<|message|>", "<|channel|>final<|message|>")


class ReplySplitter:
    """Feeds on text, gives Pieces of answer and reasoning; `stopped` once a stop string was met."""

    def __init__(
        self, stop_strings: Sequence[str] = (), *, in_reasoning: bool = False, continuing: bool = False
    ) -> None:
        """`in_reasoning`: the prompt opened the reasoning; `continuing`: the text carries an unfinished reply on."""
        self._stops = tuple(text for text in stop_strings if text)
        self._closing = MARKERS[0][1] if in_reasoning else None
        self._held = ""
        # White space at the start and after a marker is layout, and only there can reasoning begin: an answer
        # may well talk about "<think>".
        self._at_start = not continuing
        self.stopped = False
        self.stop_text = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether what was given so far ends inside the reasoning."""
        return self._closing is not None

    def push(self, text: str) -> Iterator[Piece]:
        """Pieces that are certain now; the rest is held until it cannot be part of a marker any more."""
        self._held += text
        while not self.stopped and (found := self._first_marker()):
            start, marker = found
            yield from self._piece(self._held[:start])
            self._held = self._held[start + len(marker) :]
            self._pass(marker)
        if self.stopped:
            self._held = ""
            return
        safe = len(self._held) - self._partial_marker()
        yield from self._piece(self._held[:safe])
        self._held = self._held[safe:]

    def finish(self) -> Iterator[Piece]:
        """What was held back at the end of the reply."""
        held, self._held = self._held, ""
        yield from self._piece(held)

    def _openings(self) -> tuple[str, ...]:
        return tuple(opening for opening, _ in MARKERS) if self._at_start and not self._closing else ()

    def _markers(self) -> tuple[str, ...]:
        closing = (self._closing,) if self._closing else ()
        return (*closing, *self._openings(), *NOISE, *self._stops)

    def _first_marker(self) -> tuple[int, str] | None:
        leading = len(self._held) - len(self._held.lstrip())
        found = [(at, -len(m), m) for m in self._markers() if (at := self._held.find(m)) >= 0]
        found = [(at, size, m) for at, size, m in found if at <= leading or m not in self._openings()]
        if not found:
            return None
        start, _, marker = min(found)
        return start, marker

    def _pass(self, marker: str) -> None:
        if marker in self._stops:
            self.stopped = True
            self.stop_text = marker
        elif marker == self._closing:
            self._closing = None
            self._at_start = True
        elif marker not in NOISE:
            self._closing = dict(MARKERS)[marker]
            self._at_start = True

    def _partial_marker(self) -> int:
        """Length of the longest tail that a marker could begin with."""
        longest = max(map(len, self._markers())) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(marker.startswith(self._held[-length:]) for marker in self._markers()):
                return length
        return 0

    def _piece(self, text: str) -> Iterator[Piece]:
        if self._at_start:
            text = text.lstrip()
        if not text:
            return
        self._at_start = False
        yield Piece(text, "reasoning" if self._closing else "answer")
