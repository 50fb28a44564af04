"""Reads a PowerPoint presentation (.pptx): titles, texts and tables of its slides, and the speaker's notes."""

from __future__ import annotations

from core.documents.archive import Archive, elements, hear, local

DECK = "ppt/presentation.xml"
TITLES = ("title", "ctrTitle")
SIGNS = {"br": "\n", "tab": "\t"}


def slide_pages(archive: Archive) -> tuple[str, ...]:
    """Return the slides in order. Raises Forbidden, TooLarge, expat.ExpatError."""
    targets = archive.targets(DECK, "/slide")
    order = [each.values.get("r:id", "") for each in elements(archive.part(DECK)) if each.name == "sldId"]
    return tuple(_page(archive, targets[id]) for id in order if id in targets)


def _page(archive: Archive, part: str) -> str:
    said = _words(archive.part(part))
    notes = [_words(archive.part(name)) for name in archive.targets(part, "/notesSlide").values()]
    return "\n\n".join([said, *(f"Notes: {text}" for text in notes if text)]).strip()


def _words(xml: bytes) -> str:
    words = _Words()
    if xml:
        hear(xml, words.start, words.end, words.characters)
    return "".join(words.parts).strip()


class _Words:
    """Handles the elements of a slide and collects their text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._title = self._in_text = self._in_number = False

    def start(self, element: str, values: dict[str, str]) -> None:
        name = local(element)
        if name == "sp":
            self._title = False
        elif name == "ph":
            self._title = values.get("type") in TITLES
        elif name == "fld":
            self._in_number = values.get("type") == "slidenum"
        elif name == "p" and self._title:
            self.parts.append("# ")
        self._in_text = name == "t"
        if name in SIGNS:
            self.parts.append(SIGNS[name])

    def end(self, element: str) -> None:
        name = local(element)
        self._in_text = False
        if name == "fld":
            self._in_number = False
        elif name in ("p", "tr"):
            self.parts.append("\n")
        elif name == "tc" and self.parts[-1:] == ["\n"]:
            self.parts[-1] = "\t"

    def characters(self, text: str) -> None:
        if self._in_text and not self._in_number:
            self.parts.append(text)
