"""What is found in a file, and the limits within which it is looked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from core.errors import DocumentUnreadable
from core.sentence import sentence
from core.units import GIB, MIB


@dataclass(frozen=True)
class Document:
    """The text of a file by pages; files without pages have one. `note`: a sentence about what could not be read."""

    name: str
    pages: tuple[str, ...]
    note: str = ""

    @property
    def text(self) -> str:
        """The pages one after the other."""
        return "\n\n".join(self.pages)

    @cached_property
    def digest(self) -> str:
        """A hash of the text, whatever the file's name."""
        return sha256(json.dumps(self.pages).encode()).hexdigest()


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost at most."""

    file_bytes: int = 256 * MIB
    unpacked_bytes: int = 128 * MIB
    """Of one part of an archive."""
    characters: int = 16_000_000
    pages: int = 10_000
    memory_bytes: int = GIB
    seconds: float = 60.0


def unreadable(name: str, why: str, next_step: str = "") -> DocumentUnreadable:
    """The error for a file of which nothing is taken."""
    return DocumentUnreadable(sentence("{} cannot be read.", name), why, next_step)
