"""The result of reading a file, and the limits for reading it."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from core.errors import DocumentUnreadable
from core.sentence import sentence
from core.units import GIB, MIB

PICTURE = "data:image/{};base64,"
"""The prefix of a picture's only page; the base64 content of its file follows."""
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}
"""Magic bytes of picture files, and their types."""


@dataclass(frozen=True)
class Document:
    """The text of a file by pages; files without pages have one, and a picture has its data URL. `note`: a sentence
    about what could not be read."""

    name: str
    pages: tuple[str, ...]
    note: str = ""

    @property
    def text(self) -> str:
        """The pages, separated by blank lines."""
        return "\n\n".join(self.pages)

    @cached_property
    def picture(self) -> bytes:
        """The content of a picture's file; b"" for texts."""
        return picture_in(self.pages[0]) if len(self.pages) == 1 else b""

    @cached_property
    def digest(self) -> str:
        """A hash of the text, independent of the file's name."""
        return sha256(json.dumps(self.pages).encode()).hexdigest()


def picture_document(name: str, data: bytes) -> Document:
    """Wrap the content of a picture's file (PNG, JPEG, WebP or GIF) as a document."""
    return Document(name, (data_url(data),))


def data_url(data: bytes) -> str:
    """Return a picture's file as a data URL."""
    kind = next((kind for beginning, kind in KINDS.items() if data.startswith(beginning)), "png")
    return PICTURE.format(kind) + b64encode(data).decode()


def picture_in(url: str) -> bytes:
    """Return the content of a picture's file from its data URL; b"" for any other text."""
    if not url.startswith(tuple(PICTURE.format(kind) for kind in KINDS.values())):
        return b""
    try:
        return b64decode(url.partition(",")[2], validate=True)
    except binascii.Error:
        return b""


@dataclass(frozen=True)
class Limits:
    """Limits for reading one file."""

    file_bytes: int = 256 * MIB
    unpacked_bytes: int = 128 * MIB
    """Limit for one part of an archive."""
    characters: int = 16_000_000
    pages: int = 10_000
    memory_bytes: int = GIB
    seconds: float = 60.0


def unreadable(name: str, why: str, next_step: str = "") -> DocumentUnreadable:
    """Return the error for a file that cannot be read."""
    return DocumentUnreadable(sentence("{} cannot be read.", name), why, next_step)
