"""Parses the header of a safetensors file: tensor names, types, shapes and offsets, without reading the weights.

Format (huggingface/safetensors, README): 8 bytes little-endian header length, that many bytes of JSON, then the data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from core.errors import ModelUnreadable
from core.sentence import sentence

LENGTH_BYTES = 8
# The format's own limit (safetensors MAX_HEADER_SIZE); a larger value means that the file is something else.
MAX_HEADER_BYTES = 100_000_000
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def header_length(prefix: bytes, source: str) -> int:
    """Return the length of the JSON header in bytes, from the file's first 8 bytes. Raises ModelUnreadable."""
    if len(prefix) < LENGTH_BYTES:
        raise _unreadable(source, "It is cut off before its header.")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _unreadable(source, "It does not begin with a safetensors header.")
    return length


def parse_header(header: bytes, source: str) -> dict[str, TensorInfo]:
    """Parse the JSON header (without its 8-byte length) into tensors by name. Raises ModelUnreadable."""
    try:
        entries: dict[str, dict[str, object]] = json.loads(header)
        entries.pop("__metadata__", None)
        data_start = LENGTH_BYTES + len(header)
        return {name: _tensor(name, entry, data_start) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(source, "Its header is damaged.") from error


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file on disk, checked against the file's size. Raises ModelUnreadable."""
    try:
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), path.name)
            header = file.read(length)
            size = file.seek(0, 2)
    except OSError as error:
        raise _unreadable(path.name, f"{error.strerror or error}.") from error
    tensors = parse_header(header, path.name)
    expected = max((tensor.end for tensor in tensors.values()), default=LENGTH_BYTES + length)
    if size < expected:
        raise _unreadable(path.name, sentence("It is cut off: {} of {} bytes are there.", f"{size:,}", f"{expected:,}"))
    return tensors


def _tensor(name: str, entry: dict[str, object], data_start: int) -> TensorInfo:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(name)
    start, end = offsets
    if min(shape, default=0) < 0 or not 0 <= start <= end or (end - start) * 8 != prod(shape) * ITEM_BITS[dtype]:
        raise ValueError(name)
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def _unreadable(source: str, why: str) -> ModelUnreadable:
    return ModelUnreadable(sentence("The model file {} cannot be read.", source), why, "Download the model again.")
