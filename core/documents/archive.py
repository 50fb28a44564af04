"""Zip archives of XML parts, as in office files and e-books: bounded unpacking and parsing, independent of the
format."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable
from typing import NamedTuple
from xml.parsers import expat

RELATIONSHIPS = "/relationships"
FALLBACK = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"


class Forbidden(ValueError):
    """The XML declares a document type, which allows entity expansion and external references."""


class TooLarge(ValueError):
    """The parts of the archive unpack to more than the limit."""


class Archive:
    """The parts of a zip archive; together they may unpack to at most `limit` bytes."""

    def __init__(self, file: zipfile.ZipFile, limit: int) -> None:
        self._file = file
        self._left = limit
        self.limit = limit
        self.names = frozenset(file.namelist())

    def part(self, name: str) -> bytes:
        """Return the bytes of a part, b"" if there is none. Raises TooLarge."""
        if name not in self.names:
            return b""
        # The sizes stated in an archive cannot be trusted.
        with self._file.open(name) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return data

    def targets(self, part: str, kind: str = "") -> dict[str, str]:
        """Return the parts that an office part refers to, by relation id; `kind`: the end of the relation's type."""
        folder, name = posixpath.split(part)
        return {
            element.values["Id"]: posixpath.normpath(posixpath.join("/", folder, element.values["Target"])).lstrip("/")
            for element in elements(self.part(f"{folder}/_rels/{name}.rels"))
            if {"Id", "Target"} <= element.values.keys() and element.values.get("Type", "").endswith(kind)
        }


class Element(NamedTuple):
    """A start tag without namespaces; the attribute of a relation's id is named "r:id"."""

    name: str
    values: dict[str, str]


def elements(xml: bytes) -> list[Element]:
    """Return the start tags of a short XML file in order. Raises Forbidden, expat.ExpatError."""
    found: list[Element] = []
    if xml:
        hear(xml, lambda name, values: found.append(Element(local(name), values)))
    return found


def hear(
    xml: bytes,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None] | None = None,
    characters: Callable[[str], None] | None = None,
) -> None:
    """Parse XML and call back for each tag ("namespace name", attributes) and text, without building a tree. Fallback
    copies for older programs are skipped. Raises Forbidden, expat.ExpatError."""
    copies = 0

    def on_start(name: str, values: dict[str, str]) -> None:
        nonlocal copies
        copies += name == FALLBACK
        if not copies:
            start(name, {_attribute(key): value for key, value in values.items()})

    def on_end(name: str) -> None:
        nonlocal copies
        if end is not None and not copies:
            end(name)
        copies -= name == FALLBACK

    def on_text(text: str) -> None:
        if characters is not None and not copies:
            characters(text)

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = on_start, on_end
    parser.CharacterDataHandler = on_text
    parser.Parse(xml, True)


def local(name: str) -> str:
    """Return a name without its namespace."""
    return name.rpartition(" ")[2]


def _attribute(key: str) -> str:
    space, _, name = key.rpartition(" ")
    return f"r:{name}" if space.endswith(RELATIONSHIPS) else name


def _refuse(*_: object) -> None:
    raise Forbidden
