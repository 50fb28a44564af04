"""Attached documents: how the model reads them, their estimated tokens, and how files store them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.documents.document import Document
from core.documents.passages import Span, joined
from core.sentence import pack, unpack

FRAME = re.compile(r"<(?=\s*/?\s*document\b)", re.IGNORECASE)
CHARACTERS_PER_TOKEN = 4
"""Rule of thumb, used until the tokenizer has counted."""


@dataclass(frozen=True)
class Excerpt:
    """Passages of a document that is too long to be read whole."""

    document: Document
    spans: tuple[Span, ...]

    @property
    def pages(self) -> list[int]:
        """The numbers, from 1, of the pages with passages."""
        return sorted({span.page + 1 for span in self.spans})

    @property
    def quotes(self) -> list[tuple[int, str]]:
        """The passages with their page numbers, adjacent ones joined."""
        pages = self.document.pages
        return [(one.page + 1, pages[one.page][one.start : one.end].strip()) for one in joined(self.spans)]


def as_read(document: Document) -> str:
    """Return the text exactly as the model reads it: framed by the file's name, pages marked if there are several.

    Empty for a picture, which is not read as text.
    """
    if document.picture:
        return ""
    pages = document.pages
    return _framed(document, pages[0] if len(pages) == 1 else _paged(enumerate(pages, 1)))


def excerpt_as_read(excerpt: Excerpt) -> str:
    """Return the passages as the model reads them, with page numbers."""
    of = len(excerpt.document.pages)
    if of == 1:
        return _framed(excerpt.document, "\n[…]\n".join(text for _, text in excerpt.quotes), ' part="excerpts"')
    return _framed(excerpt.document, _paged(excerpt.quotes), f' part="excerpts of {len(excerpt.pages)} of {of} pages"')


def _paged(pages: Iterable[tuple[int, str]]) -> str:
    return "\n\n".join(f"[Page {number}]\n{text}" for number, text in pages)


def _framed(document: Document, text: str, part: str = "") -> str:
    name = _harmless(document.name.replace('"', "'"))
    return f'<document name="{name}"{part}>\n{_harmless(text)}\n</document>'


def _harmless(text: str) -> str:
    """Escape marks that would end the frame around the text or begin another."""
    return FRAME.sub("&lt;", text)


def question(text: str, attached: Iterable[Document], excerpts: Iterable[Excerpt] = ()) -> str:
    """Return the user's words preceded by the documents and passages; pictures are not included."""
    texts = filter(None, map(as_read, attached))
    return "\n\n".join([*texts, *map(excerpt_as_read, excerpts), text])


def tokens_about(text: str) -> int:
    """Estimate the number of tokens. Characters beyond ASCII count by their UTF-8 bytes, up to about one token each."""
    beyond = len(text.encode(errors="replace")) - len(text)
    return -(-(len(text) + beyond * 3 // 2) // CHARACTERS_PER_TOKEN)


def parts_to_table(parts: Mapping[str, Iterable[Span]]) -> dict[str, object]:
    """Convert the passages of each document (by digest) to JSON."""
    return {digest: [list(span) for span in spans] for digest, spans in parts.items()}


def parts_from_table(table: object, documents: Mapping[str, Document]) -> list[Excerpt]:
    """Inverse of `parts_to_table`. Drops documents that are missing and malformed entries."""
    kept = table if isinstance(table, dict) else {}
    return [Excerpt(documents[digest], _spans(rows)) for digest, rows in kept.items() if digest in documents]


def _spans(rows: object) -> tuple[Span, ...]:
    sound = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    return tuple(Span(*row) for row in sound if len(row) == 3 and all(isinstance(place, int) for place in row))


def to_table(document: Document) -> dict[str, object]:
    """Convert a document to JSON."""
    return {"name": document.name, "pages": list(document.pages), "note": pack(document.note)}


def from_table(table: Mapping[str, Any]) -> Document:
    """Inverse of `to_table`. Raises KeyError or TypeError for anything else."""
    pages = table["pages"]
    if not isinstance(pages, list) or not all(isinstance(page, str) for page in pages):
        raise TypeError(pages)
    return Document(str(table["name"]), tuple(pages), unpack(table.get("note", "")))
