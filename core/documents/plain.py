"""Decodes text files: detects their encoding, and whether they are text at all."""

from __future__ import annotations

import codecs
import re

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose BOM is a prefix of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
SAMPLE = 1 << 16


class NotText(ValueError):
    """The bytes are not text in any known encoding."""


def decode(data: bytes) -> str:
    """Decode UTF-8, UTF-16, UTF-32 or, last, Windows-1252 or Latin-1; line ends become "\\n". Raises NotText."""
    text = _decoded(data)
    if CONTROL.search(text[:SAMPLE]) or "\0" in text:
        raise NotText
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str:
    encodings = (next((name for mark, name in BOMS if data.startswith(mark)), _unmarked(data)), "cp1252", "latin-1")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise NotText


def _unmarked(data: bytes) -> str:
    """Return the encoding of text without a BOM; UTF-16 shows in zeros, every second byte of Latin letters."""
    sample = data[:SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > len(sample) // 5 and not even:
        return "utf-16-le"
    if even > len(sample) // 5 and not odd:
        return "utf-16-be"
    return "utf-8"
