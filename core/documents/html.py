"""Extracts the text of an HTML page, without scripts and styles."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from core.documents.plain import decode

SILENT = {"script", "style", "template", "noscript", "svg"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "title",
    "tr", "ul",
}  # fmt: skip
CELLS = {"td", "th"}
CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
HEAD_BYTES = 4096


class _Words(HTMLParser):
    """Collects text in `parts`; block elements begin new lines."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0
        self._kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in SILENT
        self._kept += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n- " if tag == "li" else "\n")
        elif tag in CELLS:
            self.parts.append("\t")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in SILENT))
        self._kept = max(0, self._kept - (tag == "pre"))
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._kept else re.sub(r"\s+", " ", data))


def html_text(data: bytes) -> str:
    """Return the page's text by lines. Raises NotText."""
    return markup_text(_decoded(data))


def markup_text(markup: str) -> str:
    """Return the text of decoded markup."""
    words = _Words()
    words.feed(markup)
    words.close()
    lines = (line.strip(" ") for line in "".join(words.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _decoded(data: bytes) -> str:
    stated = CHARSET.search(data[:HEAD_BYTES])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode(stated[1].decode("ascii")) if stated else decode(data)
    except (LookupError, UnicodeDecodeError):
        return decode(data)
