"""Office files and books are zip archives of XML: their parts, unpacked and heard within limits. Knows no formats."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable
from typing import NamedTuple
from xml.parsers import expat

RELATIONSHIPS = "/relationships"
FALLBACK = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"


class Forbidden(ValueError):
    """The XML declares a document type, by which small files can become huge or reach for others."""


class TooLarge(ValueError):
    """The parts of the archive unpack to more than is allowed."""


class Archive:
    """The parts of a zip archive; together they may unpack to at most `limit` bytes."""

    def __init__(self, file: zipfile.ZipFile, limit: int) -> None:
        self._file = file
        self._left = limit
        self.limit = limit
        self.names = frozenset(file.namelist())

    def part(self, name: str) -> bytes:
        """The bytes of a part, b"" for one that is not there. Raises TooLarge."""
        if name not in self.names:
            return b""
        # What an archive says of its sizes may be a lie.
        with self._file.open(name) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return data

    def targets(self, part: str, kind: str = "") -> dict[str, str]:
        """The parts that an office part refers to, by their ids; `kind`: how the type of the relation ends."""
        folder, name = posixpath.split(part)
        return {
            element.values["Id"]: posixpath.normpath(posixpath.join("/", folder, element.values["Target"])).lstrip("/")
            for element in elements(self.part(f"{folder}/_rels/{name}.rels"))
            if {"Id", "Target"} <= element.values.keys() and element.values.get("Type", "").endswith(kind)
        }


class Element(NamedTuple):
    """A start tag without namespaces; the ids of relations are called "r:id"."""

    name: str
    values: dict[str, str]


def elements(xml: bytes) -> list[Element]:
    """The start tags of a short XML file in their order. Raises Forbidden, expat.ExpatError."""
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
    """Call for every tag ("namespace name", attributes) and text, without building a tree. What stands there a
    second time for older programs is left out. Raises Forbidden, expat.ExpatError."""
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
    """A name without its namespace."""
    return name.rpartition(" ")[2]


def _attribute(key: str) -> str:
    space, _, name = key.rpartition(" ")
    return f"r:{name}" if space.endswith(RELATIONSHIPS) else name


def _refuse(*_: object) -> None:
    raise Forbidden
