"""A conversation's KV cache as a file of records, each with the states of the tokens since the previous one.

A record consists of a magic number, the length of the header, the header (JSON: model key, tokens, tensors), the
tensors' bytes, and a checksum. A truncated or damaged record ends the usable part of the file. The last record may have
no new tokens: it holds the unpacked states of the newest ones, and is replaced at the next append.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from core.events import Stop
from core.files import move_over
from core.layers.kv_states import LayerStates

MARK = b"HETEGKV2"
"""The magic number; changes with the format."""
ALIGNMENT = 64
DTYPES = {"i8": torch.int8, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER = 1 << 28


class Interrupted(Exception):
    """Writing was asked to stop. The file still has its previous content."""


@dataclass(frozen=True)
class Kept:
    """The states of a conversation's tokens; tensors that were read are views of the mapped file."""

    tokens: Sequence[int]
    reply_start: int
    layers: Sequence[LayerStates]


@dataclass(frozen=True)
class _Record:
    header: dict[str, Any]
    payload: int
    end: int

    @property
    def tokens(self) -> list[int]:
        return list(self.header["tokens"])


def read(path: Path, key: str) -> Kept | None:
    """Return the file's states for the model with this key; None if there are none. Raises OSError."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    records = list(_sound(data, key))
    grown = [record for record in records if record.tokens]
    if not grown:
        return None
    tokens = [token for record in grown for token in record.tokens]
    layers = [_joined(parts) for parts in zip(*(_layers(data, record) for record in grown), strict=True)]
    if grown[-1] is not records[-1]:
        newest = _layers(data, records[-1])
        layers = [one._replace(recent=other.tensors) for one, other in zip(layers, newest, strict=True)]
    return Kept(tokens, records[-1].header["reply_start"], layers)


def append(path: Path, key: str, kept: Kept, stop: Stop) -> None:
    """Append the states of tokens that the file does not hold yet; records of different tokens are cut off.

    Only for states that do not change when others follow. The last reply becomes a record of its own, because it is
    rewritten most often. Raises Interrupted, OSError.
    """
    with path.open("r+b" if path.exists() else "w+b") as file:
        known, end = _shared(file, key, kept.tokens)
        file.truncate(end)
        file.seek(end)
        try:
            for begin, following in ((known, kept.reply_start), (max(known, kept.reply_start), len(kept.tokens))):
                if begin < following:
                    _write(file, key, _part(kept, begin, following), stop)
            _write_recent(file, key, kept, stop)
        except BaseException:
            file.truncate(end)
            raise


def replace(path: Path, key: str, kept: Kept, stop: Stop) -> None:
    """Replace the file's content by the states of all tokens. Raises Interrupted, OSError."""
    fresh = path.with_suffix(".part")
    try:
        with fresh.open("wb") as file:
            _write(file, key, kept, stop)
            _write_recent(file, key, kept, stop)
        move_over(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


# ---- writing


def _write(file: BinaryIO, key: str, kept: Kept, stop: Stop) -> None:
    layers = kept.layers
    tables = [{"first": one.first, "tensors": [_described(*item) for item in one.tensors.items()]} for one in layers]
    size = sum(_padded(tensor.nbytes) for layer in layers for tensor in layer.tensors.values())
    header = {
        "key": key, "tokens": list(kept.tokens), "reply_start": kept.reply_start, "layers": tables, "bytes": size,
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (_padded(len(MARK) + 8 + len(text)) - len(MARK) - 8 - len(text))
    checked = _Checked(file)
    checked.write(MARK + len(text).to_bytes(8, "little") + text)
    for layer in layers:
        for tensor in layer.tensors.values():
            if stop():
                raise Interrupted
            _write_tensor(checked, tensor)
    file.write(checked.sum.to_bytes(ALIGNMENT, "little"))


def _write_recent(file: BinaryIO, key: str, kept: Kept, stop: Stop) -> None:
    if any(layer.recent for layer in kept.layers):
        _write(file, key, Kept([], kept.reply_start, [LayerStates(layer.recent) for layer in kept.layers]), stop)


class _Checked:
    """Writes to a file and keeps the checksum of the data written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def _part(kept: Kept, begin: int, end: int) -> Kept:
    """Return the states of some tokens, whose layers hold all tokens."""
    layers = [
        LayerStates({name: tensor[:, :, begin:end] for name, tensor in one.tensors.items()}) for one in kept.layers
    ]
    return Kept(kept.tokens[begin:end], kept.reply_start, layers)


def _described(name: str, tensor: Tensor) -> list[object]:
    return [name, NAMES[tensor.dtype], list(tensor.shape)]


def _write_tensor(file: _Checked, tensor: Tensor) -> None:
    # Head by head: the rows of one head are contiguous in the buffer, so that nothing is copied.
    parts = tensor.flatten(0, 1) if tensor.dim() == 4 else tensor.unsqueeze(0)
    for part in parts:
        file.write(memoryview(part.contiguous().flatten().view(torch.uint8).numpy()))
    file.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# ---- reading


def _shared(file: BinaryIO, key: str, tokens: Sequence[int]) -> tuple[int, int]:
    """Return how many of these tokens the file's first records hold, and where those records end."""
    known = end = 0
    for record in _records(_FileBytes(file), key):
        own = record.tokens
        if not own or own != list(tokens[known : known + len(own)]):
            break
        known, end = known + len(own), record.end
    return known, end


class _FileBytes:
    """A file as sliceable bytes, without reading all of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __len__(self) -> int:
        return self._file.seek(0, 2)

    def __getitem__(self, place: slice) -> bytes:
        self._file.seek(place.start)
        return self._file.read(place.stop - place.start)


def _records(data: Any, key: str) -> Iterator[_Record]:
    """Yield the complete records of the model with this key from the beginning on, without checking their states."""
    at, size = 0, len(data)
    while at + len(MARK) + 8 <= size and data[at : at + len(MARK)] == MARK:
        begin = at + len(MARK) + 8
        length = int.from_bytes(data[begin - 8 : begin], "little")
        if length > min(MOST_HEADER, size - begin):
            return
        header = _header(data[begin : begin + length])
        end = begin + length + (header["bytes"] if header else 0) + ALIGNMENT
        if header is None or header["key"] != key or end > size:
            return
        yield _Record(header, begin + length, end)
        at = end


def _header(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text)
    except ValueError:
        return None
    sound = isinstance(header, dict) and isinstance(header.get("bytes"), int) and header["bytes"] >= 0
    return header if sound and "key" in header and isinstance(header.get("tokens"), list) else None


def _sound(data: mmap.mmap, key: str) -> Iterator[_Record]:
    """Yield records until one has a wrong checksum."""
    at = 0
    with memoryview(data) as view:
        for record in _records(data, key):
            stated = int.from_bytes(data[record.end - ALIGNMENT : record.end], "little")
            if zlib.crc32(view[at : record.end - ALIGNMENT]) != stated:
                return
            yield record
            at = record.end


def _layers(data: mmap.mmap, record: _Record) -> list[LayerStates]:
    place, found = record.payload, []
    for table in record.header["layers"]:
        tensors = {}
        for name, dtype, shape in table["tensors"]:
            tensors[name] = _tensor(data, DTYPES[dtype], shape, place)
            place += _padded(tensors[name].nbytes)
        found.append(LayerStates(tensors, table["first"]))
    return found


def _tensor(data: mmap.mmap, dtype: torch.dtype, shape: Sequence[int], place: int) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=place).view(tuple(shape))


def _joined(parts: Sequence[LayerStates]) -> LayerStates:
    """Concatenate one layer's states from all records."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].tensors
    return LayerStates({name: torch.cat([part.tensors[name] for part in parts], 2) for name in names}, parts[0].first)
