"""Parses the header of a GGUF file: settings and tensors by name, with every count and length checked.

Format (ggml-org/ggml, docs/gguf.md): magic, version, two counts, settings, tensor infos, padding, data. A count is only
trusted if the file has enough bytes left for that many entries, so a damaged file cannot cause large allocations.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

from core.errors import ModelUnreadable, UnsupportedModel
from core.sentence import sentence
from core.weights.gguf.types import TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_DEPTH = 3
"""Maximum nesting of arrays; no known file nests even two levels."""
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
LEAST_SETTING, LEAST_TENSOR, LEAST_STRING = 13, 24, 8
"""Minimum bytes of one entry."""
Settings = dict[str, Any]


class NeedsMore(Exception):
    """Raised if the header is longer than the bytes at hand, and the file has more."""


@dataclass(frozen=True)
class TensorPlace:
    """One tensor: `shape` in torch's order, rows first; `start` in bytes from the beginning of its file."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self.elements // self.type.elements * self.type.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of the last dimension."""
        return (self.shape[-1] if self.shape else 1) // self.type.elements * self.type.nbytes


@dataclass(frozen=True)
class Header:
    """The settings and tensors of one file."""

    settings: Settings
    tensors: dict[str, TensorPlace]


def parse(data: bytes | memoryview, source: str, size: int | None = None) -> Header:
    """Parse the header at the beginning of `data`, of a file of `size` bytes (None = `data` is the whole file).

    Raises ModelUnreadable, UnsupportedModel, and NeedsMore if `data` ends before the header does.
    """
    reader = _Reader(memoryview(data), source, len(data) if size is None else size)
    try:
        return _parse(reader)
    except (UnicodeDecodeError, struct.error, OverflowError) as error:
        raise unreadable(source, "Its header is damaged.") from error


def _parse(reader: _Reader) -> Header:
    if reader.take(4) != MAGIC:
        raise unreadable(reader.source, "It does not begin as a GGUF file does.")
    version = reader.number("I")
    if version not in VERSIONS:
        raise UnsupportedModel(
            sentence("The file {} is of GGUF's version {}.", reader.source, version), "Versions 2 and 3 are read here.",
            "Choose a newer file of this model.",
        )  # fmt: skip
    tensors, settings = reader.count(LEAST_TENSOR), reader.count(LEAST_SETTING)
    found = dict(_setting(reader) for _ in range(settings))
    if len(found) < settings:
        raise unreadable(reader.source, "A setting stands in it twice.")
    alignment = found.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise unreadable(reader.source, "Its header is damaged.")
    places = [_place(reader) for _ in range(tensors)]
    start = reader.at + -reader.at % alignment
    return Header(found, _checked(places, start, reader))


def _setting(reader: _Reader) -> tuple[str, Any]:
    return reader.string(), reader.value(reader.number("I"))


def _place(reader: _Reader) -> TensorPlace:
    name = reader.string()
    dimensions = reader.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise unreadable(
            reader.source, sentence("The tensor {} has {} dimensions.", repr(name[:60]), f"{dimensions:,}")
        )
    shape = tuple(reversed([reader.number("Q") for _ in range(dimensions)]))
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in TYPES:
        raise UnsupportedModel(
            sentence("The weights are stored in a number type of GGUF that is not known here ({}).", kind),
            "It is newer than this version of HeteGen, or no longer used.",
            "Choose a file of this model in Q4_K_M, Q6_K or Q8_0.",
        )
    return TensorPlace(name, TYPES[kind], shape, offset)


def _checked(places: list[TensorPlace], start: int, reader: _Reader) -> dict[str, TensorPlace]:
    """Return the tensors with offsets from the beginning of the file, after checking that each lies within it."""
    found: dict[str, TensorPlace] = {}
    for place in places:
        last = place.shape[-1] if place.shape else 1
        end = start + place.start + place.nbytes
        if last % place.type.elements or place.name in found:
            raise unreadable(reader.source, sentence("The tensor {} is described wrongly.", repr(place.name[:60])))
        if end > reader.size:
            raise unreadable(
                reader.source,
                sentence("It is cut off: {} of at least {} bytes are there.", f"{reader.size:,}", f"{end:,}"),
            )
        found[place.name] = TensorPlace(place.name, place.type, place.shape, start + place.start)
    return found


class _Reader:
    """Reads one value after another."""

    def __init__(self, data: memoryview, source: str, size: int) -> None:
        self.data, self.source, self.size = data, source, size
        self.at = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        self._need(count)
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, code: str) -> Any:
        """Return the next number; `code` is its `struct` format."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, least: int) -> int:
        """Return the next count, of entries of at least `least` bytes each. Raises ModelUnreadable if they do not
        fit."""
        count: int = self.number("Q")
        if count * least > self.size - self.at:
            raise unreadable(self.source, sentence("It announces {} entries and is too short for them.", f"{count:,}"))
        return count

    def string(self) -> str:
        return self.take(self.count(1)).decode("utf-8", errors="replace")

    def strings(self, count: int) -> list[str]:
        """Return the next `count` strings. The loop is inlined, because a vocabulary has some 100,000."""
        found: list[str] = []
        length_at, data, end = struct.Struct("<Q").unpack_from, self.data, len(self.data)
        for _ in range(count):
            begin = self.at + LEAST_STRING
            last = begin + length_at(data, self.at)[0] if begin <= end else begin
            if last > end:
                return [*found, self.string()]  # raises the precise error
            found.append(str(data[begin:last], "utf-8", "replace"))
            self.at = last
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return the next value of a type: number, string, or list."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(self._code(kind))
        item = self.number("I")
        if depth == MAX_DEPTH:
            raise unreadable(self.source, "Its settings are nested too deeply.")
        if item == STRING:
            return self.strings(self.count(LEAST_STRING))
        if item == ARRAY:
            return [self.value(ARRAY, depth + 1) for _ in range(self.count(LEAST_STRING))]
        code = self._code(item)
        width = struct.calcsize(f"<{code}")
        count = self.count(width)
        return list(struct.unpack(f"<{count}{code}", self.take(count * width)))

    def _code(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise unreadable(self.source, sentence("A setting is of the unknown kind {}.", f"{kind:,}"))
        return NUMBERS[kind]

    def _need(self, count: int) -> None:
        if self.at + count <= len(self.data):
            return
        if self.at + count <= self.size:
            raise NeedsMore
        raise unreadable(self.source, "It is cut off before its weights.")


def unreadable(source: str, why: str) -> ModelUnreadable:
    """Return the error for a damaged file."""
    return ModelUnreadable(sentence("The model file {} cannot be read.", source), why, "Download the model again.")
