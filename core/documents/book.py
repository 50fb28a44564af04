"""Reads the chapters of an e-book (.epub), each as one page."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from core.documents.archive import Archive, elements
from core.documents.html import html_text

CONTAINER, LOCKS = "META-INF/container.xml", "META-INF/encryption.xml"


class Protected(ValueError):
    """The book's text is encrypted (DRM)."""


def book_pages(archive: Archive) -> tuple[str, ...]:
    """Return the chapters in reading order. Raises Protected, Forbidden, TooLarge, expat.ExpatError, NotText."""
    package = _package(archive)
    folder = posixpath.dirname(package)
    files: dict[str, str] = {}
    order: list[str] = []
    for name, values in elements(archive.part(package)):
        if name == "item":
            files[values.get("id", "")] = posixpath.normpath(posixpath.join(folder, unquote(values.get("href", ""))))
        elif name == "itemref":
            order.append(values.get("idref", ""))
    chapters = [files[id] for id in order if id in files]
    if not _locked(archive).isdisjoint(chapters):
        raise Protected
    return tuple(text for name in chapters if (text := html_text(archive.part(name))))


def _package(archive: Archive) -> str:
    roots = (each for each in elements(archive.part(CONTAINER)) if each.name == "rootfile")
    return next((root.values.get("full-path", "") for root in roots), "")


def _locked(archive: Archive) -> set[str]:
    """Return the encrypted parts; encrypted fonts are common and do not matter here."""
    found = elements(archive.part(LOCKS))
    return {unquote(each.values.get("URI", "")) for each in found if each.name == "CipherReference"}
