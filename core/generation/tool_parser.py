"""Finds tool calls in a streamed reply: passes answer text on and emits calls as pieces."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence

from core.events import Tool, ToolCallPiece
from core.generation.tool_formats import ToolFormat, whole_call


class JsonObject:
    """Tracks a JSON object from its opening brace; `ended` is True after the closing one."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.ended = False

    def push(self, text: str) -> int:
        """Return how many characters of `text` belong to the object."""
        for index, character in enumerate(text):
            self._take(character)
            if self.ended:
                return index + 1
        return len(text)

    def _take(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = not self._escaped and character == "\\"
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.ended = self._depth == 0


class ToolParser:
    """Splits a reply's text into runs of answer text and ToolCallPieces, in order.

    Text that looks like a call but is not one is emitted as text once that is certain.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Tool], reasoning: Callable[[], bool]) -> None:
        """`reasoning`: returns whether the text so far ends inside the reasoning, where no call can begin."""
        self._format = format
        self._tools = tools
        self._reasoning = reasoning
        self._held = ""
        self._state: Callable[[], Iterator[str | ToolCallPiece]] = self._in_text
        self._moved = False
        self._at_start = True
        self._object = JsonObject()
        self.calls = 0

    def push(self, text: str) -> Iterator[str | ToolCallPiece]:
        """Yield what is certain; the rest is held back."""
        self._held += text
        self._moved = True
        while self._moved and self._held:
            self._moved = False
            yield from self._state()

    def finish(self) -> Iterator[str | ToolCallPiece]:
        """Yield what was held back at the end of the reply."""
        held, self._held = self._held, ""
        if self._state == self._in_header and (call := whole_call(held, self._tools)):
            yield from self._whole(*call)
        elif self._state in (self._in_text, self._in_header) and held:
            yield held

    def _go(self, state: Callable[[], Iterator[str | ToolCallPiece]]) -> None:
        self._state = state
        self._moved = True

    def _in_text(self) -> Iterator[str | ToolCallPiece]:
        start, opening = self._first_opening(self._format.openings)
        if not opening:
            start = len(self._held) - self._partial(self._format.openings)
        text, self._held = self._held[:start], self._held[start:]
        if text:
            yield text
            self._at_start = self._at_start and not text.strip()
        if opening and self._reasoning() and not self._format.ends_reasoning:
            yield opening
            self._held = self._held[len(opening) :]
            self._moved = True
        elif opening:
            self._go(self._in_header)

    def _first_opening(self, openings: Sequence[str]) -> tuple[int, str]:
        found = [(at, opening) for opening in openings if (at := self._held.find(opening)) >= 0]
        found = [(at, opening) for at, opening in found if self._may_open(at)]
        return min(found, default=(0, ""), key=lambda item: item[0])

    def _may_open(self, at: int) -> bool:
        return not self._format.only_first or (self._at_start and not self._held[:at].strip())

    def _partial(self, openings: Sequence[str]) -> int:
        """Return the length of the longest tail that may begin an opening."""
        longest = max(map(len, openings)) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(one.startswith(self._held[-n:]) for one in openings)), 0)

    def _in_header(self) -> Iterator[str | ToolCallPiece]:
        found = self._format.header.match(self._held) if self._format.header else None
        if found is not None:
            self._held = self._held[found.end() :]
            self._object = JsonObject()
            yield self._named(next(group for group in found.groups() if group))
            self._go(self._in_arguments)
            return
        ends = [at + len(one) for one in self._format.closings if one[0] == "<" and (at := self._held.find(one)) > 0]
        if ends:
            yield from self._give_up_header(max(ends))

    def _give_up_header(self, end: int) -> Iterator[str | ToolCallPiece]:
        text, self._held = self._held[:end], self._held[end:]
        call = whole_call(text, self._tools)
        if call is None:
            yield text
            self._go(self._in_text)
        else:
            yield from self._whole(*call)
            self._go(self._after_call)

    def _in_arguments(self) -> Iterator[str | ToolCallPiece]:
        end = self._object.push(self._held)
        text, self._held = self._held[:end], self._held[end:]
        yield ToolCallPiece(self.calls - 1, arguments=text)
        if self._object.ended:
            self._go(self._after_call)

    def _after_call(self) -> Iterator[str | ToolCallPiece]:
        """Drop closing text after a call until another call or text follows."""
        self._held = self._held.lstrip(self._format.junk)
        closing = next((one for one in self._format.closings if self._held.startswith(one)), "")
        openings = (*self._format.openings, *self._format.more)
        if closing:
            self._held = self._held[len(closing) :]
            self._moved = True
        elif any(self._held.startswith(opening) for opening in openings):
            self._go(self._in_header)
        elif not any(one.startswith(self._held) for one in (*self._format.closings, *openings)):
            self._go(self._in_text)
        yield from ()

    def _named(self, name: str) -> ToolCallPiece:
        self.calls += 1
        return ToolCallPiece(self.calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _whole(self, name: str, arguments: str) -> Iterator[ToolCallPiece]:
        yield self._named(name)
        yield ToolCallPiece(self.calls - 1, arguments=arguments)
