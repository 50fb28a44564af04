"""The Markdown that models write: CommonMark with tables, TeX, footnotes and a few tags, as a parser. Knows no Qt."""

from __future__ import annotations

import re
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from app.text.markdown_stream import ENVIRONMENT

TAGS = ("sub", "sup", "u", "mark", "kbd")
"""HTML's tags for which Markdown has no signs."""
_BREAK = re.compile(r"<br\s*/?>[ \t]*", re.IGNORECASE)
_AMONG_WORDS = re.compile(r" <br\s*/?> ", re.IGNORECASE)
_TAGGED = re.compile(rf"<({'|'.join(TAGS)})>(?=\S)([^<>\n]{{1,200}})(?<=\S)</\1>", re.IGNORECASE)
"""Text directly between its tags: "from <u> to </u>" speaks of them."""
_MATHS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)"
    r"|(\\begin(?P<name>" + ENVIRONMENT + r").+?\\end(?P=name))",
    re.DOTALL,
)
_NUMBER = r"\[\^([A-Za-z]*\d{1,3})\]"
_NAME = r"\[\^([A-Za-z][\w-]{2,30})\]"
_NOTE = re.compile(rf"{_NUMBER}|(?<=[\w.,;:!?\"'”’)\]]){_NAME}(?=[\s.,;:!?)\[]|$)")
"""Reference to a footnote. One without a number must end a word: regular expressions exclude characters alike."""
_NOTE_TEXT = re.compile(rf"(?:{_NUMBER}|{_NAME}):[ \t]*(.*)")


@cache
def parser() -> MarkdownIt:
    """Return the parser. Beside CommonMark's, its inline tokens are maths (TeX), footnote_ref, tagged and line_break.

    `tagged`: text between two of TAGS, named by `tag`. `line_break`: `meta["is_word"]` says whether it stands like a
    word in a sentence, which may speak of it.
    """
    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    # The splitter has removed the fences; four spaces are more often careless indentation by a model than code.
    markdown.disable(["code", "html_block", "html_inline"])
    markdown.inline.ruler.before("escape", "maths", _maths_rule)
    markdown.inline.ruler.before("autolink", "tag", _tag_rule)
    markdown.inline.ruler.before("link", "footnote_ref", _footnote_ref_rule)
    # Before link references, which look alike.
    markdown.block.ruler.before("reference", "footnote", _footnote_rule, {"alt": ["paragraph"]})
    return markdown


def _footnote_ref_rule(state: StateInline, silent: bool) -> bool:
    found = _NOTE.match(state.src, state.pos) if state.src[state.pos] == "[" else None
    if found is None or state.src[found.end() : found.end() + 1] == "(":
        return False
    if not silent:
        state.push("footnote_ref", "", 0).content = found[1] or found[2]
    state.pos = found.end()
    return True


def _footnote_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take a note with the lines that continue it."""
    found = _NOTE_TEXT.match(_line(state, start))
    if found is None or silent:
        return found is not None
    following = start + 1
    while following < end and not state.isEmpty(following) and not _NOTE_TEXT.match(_line(state, following)):
        following += 1
    state.push("footnote_open", "", 1).info = found[1] or found[2]
    inline = state.push("inline", "", 0)
    inline.content = "\n".join([found[3], *(_line(state, line) for line in range(start + 1, following))])
    inline.children, inline.map = [], [start, following]
    state.push("footnote_close", "", -1)
    state.line = following
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]


def _maths_rule(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    found = _MATHS.match(state.src, state.pos, state.pos + 4000)
    if found is None:
        return False
    if not silent:
        token = state.push("maths", "", 0)
        token.content = next(group for group in found.groups() if group is not None)
    state.pos = found.end()
    return True


def _tag_rule(state: StateInline, silent: bool) -> bool:
    """Read the tags that models write for want of Markdown; all others stay text."""
    if state.src[state.pos] != "<":
        return False
    if found := _BREAK.match(state.src, state.pos):
        if not silent:
            token = state.push("line_break", "", 0)
            token.content = found[0]
            token.meta = {
                "is_word": " "
                in (state.src[found.start() - 1 : found.start()], state.src[found.end() : found.end() + 1])
            }
    elif found := _TAGGED.match(state.src, state.pos):
        if not silent:
            state.push("tagged", found[1].lower(), 0).content = found[2]
    else:
        return False
    state.pos = found.end()
    return True
