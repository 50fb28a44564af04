"""Highlights code as it streams in: each line is lexed once, from the state in which the last line left the lexer.

Pygments' lexers start from the beginning with every call, so their state tables are driven line by line here.
"""

from __future__ import annotations

from collections.abc import Iterator

from pygments.lexer import ExtendedRegexLexer, Lexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Error, Generic, Keyword, Literal, Name, Number, Operator, String, Text, _TokenType
from pygments.util import ClassNotFound

TOKENS = (
    (Comment, "muted"),
    (Keyword, "cpu"),
    (String, "ok"),
    (Number, "streamed"),
    (Name.Function, "accent"),
    (Name.Class, "accent"),
    (Name.Tag, "cpu"),
    (Name.Attribute, "streamed"),
    (Name.Decorator, "streamed"),
    (Name.Builtin, "resident"),
    (Operator.Word, "cpu"),
    (Generic.Deleted, "danger"),
    (Generic.Inserted, "ok"),
    (Generic.Heading, "accent"),
    (Literal, "streamed"),
)
LONGEST_STEP = 400
"""Longest line, in characters, that is highlighted; longer ones stay plain."""


class Highlighter:
    """Highlights one block of code, line by line."""

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._stack = ["root"]

    def line(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield (run of characters, colour token) pairs of one line including its line break."""
        if self._lexer is None or len(text) > LONGEST_STEP:
            yield text, "text"
            return
        last = ""
        run: list[str] = []
        for value, token in self._runs(text):
            colour = colour_of(token)
            if colour != last and run:
                yield "".join(run), last
                run = []
            last = colour
            run.append(value)
        if run:
            yield "".join(run), last

    def _runs(self, text: str) -> Iterator[tuple[str, _TokenType]]:
        at = 0
        for start, token, value in self._tokens(text):
            if start < at or not value:
                continue
            if start > at:
                yield text[at:start], Text
            yield value, token
            at = start + len(value)
        if at < len(text):
            yield text[at:], Text

    def _tokens(self, text: str) -> Iterator[tuple[int, _TokenType, str]]:
        lexer = self._lexer
        assert lexer is not None
        if isinstance(lexer, ExtendedRegexLexer) or not isinstance(lexer, RegexLexer):
            # These keep a state that cannot be reached from outside: lex each line by itself.
            yield from lexer.get_tokens_unprocessed(text)
            return
        at = idle = 0
        while at < len(text):
            for match, action, new_state in lexer._tokens[self._stack[-1]]:
                found = match(text, at)
                if not found:
                    continue
                if action is not None:
                    if type(action) is _TokenType:
                        yield at, action, found.group()
                    else:
                        yield from action(lexer, found)
                # A state table may push and pop without consuming; too many such steps would be an endless loop.
                idle = idle + 1 if found.end() == at else 0
                at = found.end()
                if new_state is not None:
                    self._enter(new_state)
                break
            else:
                if text[at] == "\n":
                    # As in Pygments: a line break that no rule consumes resets the state.
                    self._stack = ["root"]
                    yield at, Text, "\n"
                else:
                    yield at, Error, text[at]
                at += 1
            if idle > 50:
                self._stack, idle = ["root"], 0
                yield at, Text, text[at]
                at += 1

    def _enter(self, state: object) -> None:
        for step in state if isinstance(state, tuple) else (state,):
            if step == "#pop" or isinstance(step, int):
                for _ in range(-step if isinstance(step, int) else 1):
                    if len(self._stack) > 1:
                        self._stack.pop()
            elif step == "#push":
                self._stack.append(self._stack[-1])
            else:
                self._stack.append(str(step))
        del self._stack[:-200]


def colour_of(token: _TokenType) -> str:
    """Map a Pygments token to a colour token of `app.settings.theme`."""
    return next((colour for kind, colour in TOKENS if token in kind), "text")


def _lexer(language: str) -> Lexer | None:
    if not language:
        return None
    try:
        return get_lexer_by_name(language)
    except ClassNotFound:
        return None
