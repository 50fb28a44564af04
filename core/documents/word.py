"""Reads the text of a Word document (.docx)."""

from __future__ import annotations

import re

from core.documents.archive import Archive, hear

BODY = "word/document.xml"
NOTES = ("word/footnotes.xml", "word/endnotes.xml")
WORDS = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main "
HEADING = re.compile(r"heading ?([1-6])$", re.IGNORECASE)
SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
PAGE = "\f"


def word_pages(archive: Archive) -> tuple[str, ...]:
    """Return the text by pages, if Word has recorded page breaks. Raises Forbidden, TooLarge, expat.ExpatError."""
    parts = [_text(archive.part(name)) for name in (BODY, *NOTES) if name in archive.names]
    return tuple(page.strip("\n") for page in "\n".join(parts).rstrip().split(PAGE))


def _text(xml: bytes) -> str:
    words = _Words()
    hear(xml, words.start, words.end, words.characters)
    return "".join(words.parts)


class _Words:
    """Handles the elements of a document and collects their text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._in_text = False

    def start(self, element: str, values: dict[str, str]) -> None:
        name = _local(element)
        if not name:
            return
        self._in_text = name == "t"
        if name == "pStyle" and (heading := HEADING.match(values.get("val", ""))):
            self.parts.append("#" * int(heading[1]) + " ")
        elif name == "lastRenderedPageBreak" or (name == "br" and values.get("type") == "page"):
            self._turn_page()
        else:
            self.parts.append(SIGNS.get(name, ""))

    def end(self, element: str) -> None:
        name = _local(element)
        if not name:
            return
        self._in_text = False
        if name == "p":
            self.parts.append("\n")
        elif name == "tc":
            self._end_cell()

    def characters(self, text: str) -> None:
        if self._in_text:
            self.parts.append(text.replace(PAGE, " "))

    def _turn_page(self) -> None:
        # An explicit break is often followed by a recorded one for the same page.
        written = next((part for part in reversed(self.parts) if part.strip(" \n\t#")), PAGE)
        if written != PAGE:
            self.parts.append(PAGE)

    def _end_cell(self) -> None:
        if self.parts and self.parts[-1] == "\n":
            self.parts[-1] = "\t"


def _local(element: str) -> str:
    """Return the element's name, "" for other namespaces."""
    space = next((space for space in (WORDS, STRICT) if element.startswith(space)), None)
    return element[len(space) :] if space else ""
