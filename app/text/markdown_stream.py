"""Splits streaming Markdown into finished runs, which never change again, and a short tail, which may.

Rendering a reply takes linear time: each finished run is rendered once, and only the tail is rendered again. Each fence
becomes a code block, and each list item a run; the lines of a formula are joined. Endless lines and endless nesting are
cut. Knows text only, no Qt and no rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_LINE, LONGEST_WORD = 2000, 500
"""Characters after which a line, or a line without spaces, is broken: layout takes more than linear time."""
LONGEST_RUN, LONGEST_TABLE = 3000, 20_000
"""Characters after which a paragraph, or a table, is ended."""
DEEPEST = 8
ENVIRONMENT = r"\{(?:equation|align|alignat|gather|multline|eqnarray|cases|[pbBvV]?matrix|array)\*?\}"
"""The names, in braces, of TeX's environments that are formulas without `$$` around them."""

_FENCE = re.compile(r"^(\s*)(?:(?:[-*+]|\d{1,9}[.)])\s+)?(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_ITEM = re.compile(r"^(\s*)([-*+]|\d{1,9}[.)])(\s+)\S")
_RULE = re.compile(r"^\s{0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_HEADING = re.compile(r"^ {0,3}#{1,6}(?:\s|$)")
_MATHS = re.compile(
    r"^\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)?(?:(?P<dollars>\$\$)(?:\s*$|(?!.*\$\$).*\\)|\\\[(?!.*\\\])|"
    r"\\begin(?P<name>" + ENVIRONMENT + r")(?!.*\\end(?P=name)))|\\\[\s*$"
)
"""A line that leaves a formula open. `$$` alone or before TeX: it may also be about money."""
_DELIMITERS = re.compile(r"^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-*:?\s*)*\|?\s*$")


@dataclass(frozen=True)
class Prose:
    """A finished run of Markdown without code fences. `level`: depth in list items."""

    text: str
    level: int = 0


@dataclass(frozen=True)
class CodeStart:
    """The start of a fence. `language`: its first word in lower case, or empty."""

    language: str
    level: int = 0


@dataclass(frozen=True)
class CodeText:
    """Whole lines of the open fence with their line breaks, or a piece of an overlong line without one."""

    text: str


@dataclass(frozen=True)
class CodeEnd:
    """The end of the open fence."""


Part = Prose | CodeStart | CodeText | CodeEnd


class Splitter:
    """Takes text piece by piece. `push` yields what is finished; `tail` is the rest."""

    def __init__(self) -> None:
        self._line = ""
        self._run: list[str] = []
        self._columns: list[int] = []
        self._level = 0
        self._fence: str | None = None
        self._maths = ""
        """What ends the open formula, "" if none is open."""
        self._dedent = 0

    @property
    def in_code(self) -> bool:
        """Whether a fence is open."""
        return self._fence is not None

    @property
    def tail(self) -> Prose:
        """The unfinished run, or the unfinished line of code (empty while it may be the closing fence)."""
        if self._fence is not None:
            shown = "" if self._line.strip()[:1] == self._fence[0] else self._line[self._dedent :]
            return Prose(shown)
        line = "" if self._maybe_fence() else self._line
        if self._maths:
            return Prose("\n".join(self._joined(line)), self._level)
        return Prose("\n".join([*self._run, line]), self._level if self._run else self._level_of(line))

    def push(self, text: str) -> Iterator[Part]:
        """Take the next piece of text."""
        *lines, self._line = (self._line + text.replace("\r\n", "\n").replace("\0", "\ufffd")).split("\n")
        for line in lines:
            yield from self._take(line)
        while len(self._line) > LONGEST_LINE:
            head, self._line = _broken(self._line)
            yield from self._take_long(head)

    def finish(self) -> Iterator[Part]:
        """Finish the text."""
        if self._line:
            line, self._line = self._line, ""
            yield from self._take(line)
        yield from self._end_run()
        if self._fence is not None:
            self._fence = None
            yield CodeEnd()

    def _take(self, line: str) -> Iterator[Part]:
        while len(line) > LONGEST_LINE:
            head, line = _broken(line)
            yield from self._take_long(head)
        if self._fence is not None:
            yield from self._take_code(line)
        else:
            yield from self._take_prose(line)

    def _take_long(self, head: str) -> Iterator[Part]:
        if self._fence is not None:
            yield CodeText(head)
            return
        self._run.append(head)
        yield from self._end_run()

    def _take_code(self, line: str) -> Iterator[Part]:
        bare = line.strip()
        assert self._fence is not None
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence = None
            yield CodeEnd()
            return
        indent = len(line) - len(line.lstrip(" \t"))
        yield CodeText(line[min(indent, self._dedent) :] + "\n")

    def _take_prose(self, line: str) -> Iterator[Part]:
        if fence := _FENCE.match(line):
            yield from self._end_run()
            self._fence, self._dedent = fence[2], len(fence[1].expandtabs(4))
            language = fence[3].strip().split(" ")[0].strip("{}.").lower()
            yield CodeStart(language, self._level_of(line))
        elif self._maths:
            yield from self._take_maths(line)
        elif not line.strip():
            yield from self._end_run()
        elif _HEADING.match(line):
            yield from self._end_run()
            self._begin(line)
            yield from self._end_run()
        elif self._opens_item(line):
            yield from self._end_run()
            self._begin_item(line)
        else:
            if not self._run:
                self._begin(line)
            else:
                self._run.append(line)
            self._open_maths(line)
            if sum(map(len, self._run)) >= (LONGEST_TABLE if self._in_table() else LONGEST_RUN):
                yield from self._end_run()

    def _take_maths(self, line: str) -> Iterator[Part]:
        self._run = self._joined(line)
        if self._maths in line:
            self._maths = ""
        if sum(map(len, self._run)) >= LONGEST_RUN:
            yield from self._end_run()

    def _joined(self, line: str) -> list[str]:
        """Return the run with a formula's next line: `+ b` is no list item there, and an empty line ends nothing."""
        return [*self._run[:-1], f"{self._run[-1]} {line.strip()}".rstrip()]

    def _begin(self, line: str) -> None:
        self._level = self._level_of(line)
        del self._columns[self._level :]
        self._run = [line]

    def _begin_item(self, line: str) -> None:
        item = _ITEM.match(line)
        assert item is not None
        self._level = self._level_of(line)
        del self._columns[self._level :]
        if len(self._columns) < DEEPEST:
            self._columns.append(len(item[1].expandtabs(4)) + len(item[2]) + min(4, len(item[3])))
        self._run = [line]
        self._open_maths(line)

    def _open_maths(self, line: str) -> None:
        if found := _MATHS.search(line):
            self._maths = found["dollars"] or (rf"\end{found['name']}" if found["name"] else r"\]")

    def _end_run(self) -> Iterator[Part]:
        self._maths = ""
        if self._run:
            run, self._run = self._run, []
            yield Prose("\n".join(run), self._level)

    def _level_of(self, line: str) -> int:
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip(" "))
        # Models often indent by two where three are needed ("1. " with "  - " below): accept one column less.
        return sum(indent >= column - 1 for column in self._columns)

    def _opens_item(self, line: str) -> bool:
        item = _ITEM.match(line)
        if item is None or _RULE.match(line):
            return False
        # "In the year" / "1984. It was": a number at a line start inside a paragraph is not a list item, unless it is
        # 1.
        in_paragraph = bool(self._run) and not _ITEM.match(self._run[0])
        return not in_paragraph or not item[2][0].isdigit() or item[2][:-1] == "1"

    def _in_table(self) -> bool:
        return len(self._run) > 1 and "|" in self._run[0] and bool(_DELIMITERS.match(self._run[1]))

    def _maybe_fence(self) -> bool:
        start = self._line.lstrip()
        return start[:1] in ("`", "~") and not start.strip("`~ ")


def _broken(line: str) -> tuple[str, str]:
    """Split a long line, at a space if there is one, never inside a joined emoji."""
    at = line.rfind(" ", LONGEST_WORD, LONGEST_LINE) + 1 or LONGEST_WORD
    while at < len(line) and (line[at] in "\u200d\ufe0f" or line[at - 1] == "\u200d"):
        at += 1
    return line[:at], line[at:]
