"""Attached documents: how the model reads them, how long they are about, and how files hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from core.documents.document import Document
from core.sentence import pack, unpack

FRAME = re.compile(r"<(?=\s*/?\s*document\b)", re.IGNORECASE)
CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for the time before a tokenizer has counted."""


def as_read(document: Document) -> str:
    """The text exactly as the model reads it: framed by the file's name, pages told apart where there are several."""
    pages = document.pages
    text = pages[0] if len(pages) == 1 else "\n\n".join(f"[Page {n}]\n{page}" for n, page in enumerate(pages, 1))
    name = _harmless(document.name.replace('"', "'"))
    return f'<document name="{name}">\n{_harmless(text)}\n</document>'


def _harmless(text: str) -> str:
    """The text without marks that would end the frame around it or begin another."""
    return FRAME.sub("&lt;", text)


def question(text: str, attached: Iterable[Document]) -> str:
    """The user's words after the documents they are about."""
    return "\n\n".join([*map(as_read, attached), text])


def tokens_about(text: str) -> int:
    """A guess at the number of tokens."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def to_table(document: Document) -> dict[str, object]:
    """The document as JSON keeps it."""
    return {"name": document.name, "pages": list(document.pages), "note": pack(document.note)}


def from_table(table: Mapping[str, Any]) -> Document:
    """The document that `to_table` was given. Raises KeyError or TypeError for anything else."""
    pages = table["pages"]
    if not isinstance(pages, list) or not all(isinstance(page, str) for page in pages):
        raise TypeError(pages)
    return Document(str(table["name"]), tuple(pages), unpack(table.get("note", "")))
