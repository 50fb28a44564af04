"""Reads the text layer of a PDF, page by page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from core.documents.document import Document, Limits, unreadable
from core.errors import DocumentLocked
from core.sentence import sentence

SOFT_HYPHEN = re.compile("[\ufffe\x02]\n?")


def pdf_document(path: Path, limits: Limits, password: str, progress: Callable[[int, int], None]) -> Document:
    """Return all pages, blank ones too; `progress(pages read, pages)`. Raises DocumentUnreadable, DocumentLocked."""
    # Imported late: only this format needs the library.
    import pypdfium2

    name = path.name
    try:
        pdf = pypdfium2.PdfDocument(path, password=password or None)
    except pypdfium2.PdfiumError as error:
        raise _refusal(name, str(error), password) from error
    if len(pdf) > limits.pages:
        raise unreadable(name, sentence("It has {} pages, and at most {} are read.", len(pdf), limits.pages))
    found = []
    for number in range(len(pdf)):
        progress(number, len(pdf))
        found.append(_page_text(pdf, number))
    pages = tuple(found)
    empty = sum(not page for page in pages)
    if empty == len(pages):
        raise unreadable(
            name, "Its pages are pictures without a text layer, as of a scan.", "Run text recognition over it first."
        )
    note = sentence("{} of {} pages hold no text, as of a scan.", empty, len(pages)) if empty else ""
    return Document(name, pages, note)


def _page_text(pdf: object, number: int) -> str:
    """Return the text of one page, "" for a damaged one."""
    import pypdfium2

    assert isinstance(pdf, pypdfium2.PdfDocument)
    try:
        page = pdf[number]
        text = str(page.get_textpage().get_text_range())
        page.close()
    except pypdfium2.PdfiumError:
        return ""
    return SOFT_HYPHEN.sub("", text.replace("\r\n", "\n")).replace("\0", "").strip()


def _refusal(name: str, why: str, password: str) -> Exception:
    if "password" not in why.lower():
        return unreadable(name, "It is damaged, or not a PDF.")
    why = "The password is wrong." if password else "It is locked with a password."
    return DocumentLocked(sentence("{} cannot be read.", name), why)
