"""The text of a Word document (.docx): the parts of the archive that hold words, read without building a tree."""

from __future__ import annotations

import re
import zipfile
from xml.parsers import expat

BODY = "word/document.xml"
NOTES = ("word/footnotes.xml", "word/endnotes.xml")
WORDS = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main "
FALLBACK = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"
HEADING = re.compile(r"heading ?([1-6])$", re.IGNORECASE)
SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
PAGE = "\f"


class Forbidden(ValueError):
    """The XML declares a document type, by which small files can become huge or reach for others."""


class TooLarge(ValueError):
    """A part of the archive unpacks to more than is allowed."""


def word_pages(archive: zipfile.ZipFile, limit: int) -> tuple[str, ...]:
    """The text by pages, where Word has noted where pages began. Raises Forbidden, TooLarge, expat.ExpatError."""
    names = set(archive.namelist())
    parts = [_text(_unpacked(archive, name, limit)) for name in (BODY, *NOTES) if name in names]
    return tuple(page.strip("\n") for page in "\n".join(parts).rstrip().split(PAGE))


def _unpacked(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    # What an archive says of its sizes may be a lie.
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge
    return data


def _text(xml: bytes) -> str:
    parser = expat.ParserCreate(namespace_separator=" ")
    words = _Words()
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = words.start, words.end
    parser.CharacterDataHandler = words.characters
    parser.Parse(xml, True)
    return "".join(words.parts)


def _refuse(*_: object) -> None:
    raise Forbidden


class _Words:
    """Hears the elements one by one and keeps the text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._in_text = False
        self._copies = 0  # inside of what stands there a second time for older programs

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._copies += element == FALLBACK
        name = _local(element)
        if self._copies or not name:
            return
        values = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        self._in_text = name == "t"
        if name == "pStyle" and (heading := HEADING.match(values.get("val", ""))):
            self.parts.append("#" * int(heading[1]) + " ")
        elif name == "lastRenderedPageBreak" or (name == "br" and values.get("type") == "page"):
            self._turn_page()
        else:
            self.parts.append(SIGNS.get(name, ""))

    def end(self, element: str) -> None:
        self._copies -= element == FALLBACK
        name = _local(element)
        if self._copies or not name:
            return
        self._in_text = False
        if name == "p":
            self.parts.append("\n")
        elif name == "tc":
            self._end_cell()

    def characters(self, text: str) -> None:
        if self._in_text and not self._copies:
            self.parts.append(text.replace(PAGE, " "))

    def _turn_page(self) -> None:
        # A break that was asked for is often followed by a note that there was one.
        written = next((part for part in reversed(self.parts) if part.strip(" \n\t#")), PAGE)
        if written != PAGE:
            self.parts.append(PAGE)

    def _end_cell(self) -> None:
        if self.parts and self.parts[-1] == "\n":
            self.parts[-1] = "\t"


def _local(element: str) -> str:
    """The element's name, "" for those of other vocabularies."""
    space = next((space for space in (WORDS, STRICT) if element.startswith(space)), None)
    return element[len(space) :] if space else ""
