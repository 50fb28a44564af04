"""Selects the reader of a file, by its content first and its name second. Runs in the reader process."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

from core.documents.archive import Archive, Forbidden, TooLarge
from core.documents.book import CONTAINER, Protected, book_pages
from core.documents.document import KINDS, Document, Limits, picture_document, unreadable
from core.documents.html import html_text
from core.documents.mail import mail_text
from core.documents.pdf import pdf_document
from core.documents.picture import is_heic, prepared
from core.documents.plain import NotText, decode
from core.documents.sheets import BOOK, sheet_pages
from core.documents.slides import DECK, slide_pages
from core.documents.word import BODY, word_pages
from core.errors import BadRequest
from core.sentence import sentence

PDF_WITHIN = 1024
"""Bytes from the beginning within which a PDF's signature may stand."""
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
HTML, MAIL = (".html", ".htm", ".xhtml"), (".eml",)
ARCHIVES = {BODY: word_pages, BOOK: sheet_pages, DECK: slide_pages, CONTAINER: book_pages}
"""The readers of archives, by a part that only their format has."""
LOCKED_OFFICE = "EncryptedPackage".encode("utf-16-le")
OTHER_KIND = (
    "Text, source code, CSV, JSON, HTML, PDF, Word (.docx), Excel (.xlsx), PowerPoint (.pptx), books (.epub), saved "
    "e-mails (.eml) and pictures (PNG, JPEG, WebP, GIF) can be attached."
)
WITHOUT_PASSWORD = "Save a copy without the password, and attach that."
KNOWN_KINDS = "Attach it as a PDF or as text."


def read(path: Path, limits: Limits, password: str, progress: Callable[[int, int], None]) -> Document:
    """Return the text of a file; `progress(pages read, pages)`. Raises DocumentUnreadable, DocumentLocked."""
    document = _read(path, limits, password, progress)
    length = sum(map(len, document.pages))
    if length > limits.characters:
        raise unreadable(
            path.name,
            sentence("It holds {} characters, and at most {} are read.", f"{length:,}", f"{limits.characters:,}"),
            "Attach a part of it.",
        )
    if not any(page.strip() for page in document.pages):
        raise unreadable(path.name, "It is empty.")
    return document


def _read(path: Path, limits: Limits, password: str, progress: Callable[[int, int], None]) -> Document:
    with path.open("rb") as file:
        start = file.read(PDF_WITHIN)
    if b"%PDF-" in start:
        return pdf_document(path, limits, password, progress)
    if start.startswith(ZIP):
        return _archive(path, limits)
    if start.startswith(OLD_OFFICE) and LOCKED_OFFICE in path.read_bytes():
        raise unreadable(path.name, "It is locked with a password.", WITHOUT_PASSWORD)
    if start.startswith(tuple(KINDS)) or is_heic(start):
        return _picture(path)
    if start.startswith(OLD_OFFICE):
        raise _other_kind(path)
    return _text(path)


def _picture(path: Path) -> Document:
    try:
        return picture_document(path.name, prepared(path.read_bytes()))
    except BadRequest as error:
        raise unreadable(path.name, error.what, error.next_step) from error


def _text(path: Path) -> Document:
    data, suffix = path.read_bytes(), path.suffix.lower()
    try:
        if suffix in HTML:
            return Document(path.name, (html_text(data),))
        if suffix in MAIL:
            return _mail(path, data)
        return Document(path.name, (decode(data),))
    except NotText:
        raise _other_kind(path) from None


def _mail(path: Path, data: bytes) -> Document:
    text, attached = mail_text(data)
    note = sentence("Files attached to the e-mail were not read: {}.", ", ".join(attached)) if attached else ""
    return Document(path.name, (text,), note)


def _archive(path: Path, limits: Limits) -> Document:
    try:
        with zipfile.ZipFile(path) as file:
            archive = Archive(file, limits.unpacked_bytes)
            pages_of = next((pages for part, pages in ARCHIVES.items() if part in archive.names), None)
            if pages_of is None:
                raise _other_kind(path)
            return Document(path.name, pages_of(archive))
    except (zipfile.BadZipFile, expat.ExpatError, EOFError, NotImplementedError, NotText, zlib.error) as error:
        raise unreadable(path.name, "It is damaged.") from error
    except RuntimeError as error:  # raised by zipfile for an encrypted member
        raise unreadable(path.name, "It is locked with a password.", WITHOUT_PASSWORD) from error
    except Protected as error:
        raise unreadable(path.name, "It is protected against copying (DRM).") from error
    except Forbidden as error:
        raise unreadable(
            path.name, "Its XML declares entities, which such files never do: it may be an attack."
        ) from error
    except TooLarge as error:
        raise unreadable(path.name, "It unpacks to more than is allowed: it may be an attack.") from error


def _other_kind(path: Path) -> Exception:
    return unreadable(path.name, OTHER_KIND, KNOWN_KINDS)
