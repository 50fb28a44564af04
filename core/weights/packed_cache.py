"""A disk cache of converted weights, so that the second load of a model only maps a file into memory.

There is one file per model and format: the weights' bytes, then a JSON index, its length and a magic number. It is
written under a temporary name and renamed when complete, so an interrupted conversion leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from core.errors import DiskFull
from core.files import move_over
from core.kernels.column_order import ColumnOrder
from core.kernels.quantized_weight import QuantizedWeight

VERSION = 3
"""Incremented when a format's bytes or the quantisation change, so that older files are no longer found."""
MARK = b"HETEGENW"
TAIL_BYTES = len(MARK) + 8
ALIGNMENT = 64
SUFFIX = ".weights"
ABANDONED_S = 3600.0
DTYPES = {
    "i8": torch.int8, "u8": torch.uint8, "i64": torch.int64, "f32": torch.float32, "bf16": torch.bfloat16,
    "f16": torch.float16,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def cache_key(files: Sequence[Path], recipe: str) -> str:
    """Return a key that identifies a conversion: source files by name, size and mtime, and how they are converted."""
    described = []
    for file in files:
        # In the Hub's cache, the resolved file is named by its hash.
        status = file.stat()
        described.append([file.resolve().name, status.st_size, status.st_mtime_ns])
    text = json.dumps([VERSION, recipe, described])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PackedEntry:
    """One converted model on disk; `used` in seconds since the epoch."""

    key: str
    title: str
    nbytes: int
    used: float


class PackedWeights(Mapping[str, QuantizedWeight]):
    """The memory-mapped weights of one file; they stay valid while this or one of its tensors exists."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file is incomplete or damaged, OSError if it cannot be opened."""
        with path.open("rb") as file:
            index = _read_index(file)
            self.title = str(index["title"])
            self._entries: dict[str, dict[str, Any]] = index["weights"]
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, name: str) -> QuantizedWeight:
        entry = self._entries[name]
        parts = [self._tensor(part) for part in entry["parts"]]
        rows, columns = entry["shape"]
        order = ColumnOrder(self._tensor(entry["order"])) if "order" in entry else None
        return QuantizedWeight(entry["format"], (rows, columns), parts[0], parts[1] if len(parts) > 1 else None, order)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _tensor(self, part: Mapping[str, Any]) -> Tensor:
        count = 1
        for size in part["shape"]:
            count *= size
        with warnings.catch_warnings():
            # torch warns that the buffer is read-only, which is intended.
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(self._map, dtype=DTYPES[part["dtype"]], count=count, offset=part["start"])
        return flat.view(part["shape"])


class PackedWriter:
    """Appends converted weights to a file that is not yet visible to readers."""

    def __init__(self, file: BinaryIO, title: str) -> None:
        self._file = file
        self._title = title
        self._entries: dict[str, dict[str, Any]] = {}

    def add(self, name: str, weight: QuantizedWeight) -> None:
        """Write one weight. Raises DiskFull."""
        parts = [self._write(part.detach().contiguous()) for part in weight.tensors]
        self._entries[name] = {"format": weight.format, "shape": list(weight.shape), "parts": parts}
        if weight.order is not None:
            self._entries[name]["order"] = self._write(weight.order.columns.contiguous())

    def finish(self) -> None:
        """Write the index and flush everything to disk. Raises DiskFull."""
        index = json.dumps({"version": VERSION, "title": self._title, "weights": self._entries}).encode()
        with _disk_full_told():
            self._file.write(index + len(index).to_bytes(8, "little") + MARK)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write(self, part: Tensor) -> dict[str, Any]:
        with _disk_full_told():
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            start = self._file.tell()
            self._file.write((ctypes.c_char * part.nbytes).from_address(part.data_ptr()))
        return {"dtype": NAMES[part.dtype], "shape": list(part.shape), "start": start}


class PackedCache:
    """The folder of converted models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> PackedWeights | None:
        """Return the conversion with this key; None if there is none that can be read."""
        path = self._path(key)
        try:
            weights = PackedWeights(path)
        except (OSError, ValueError, KeyError):
            return None
        with suppress(OSError):
            os.utime(path)
        return weights

    @contextmanager
    def write(self, key: str, title: str) -> Iterator[PackedWriter]:
        """Context: add weights inside the block; they become visible when it ends without an error. Raises DiskFull."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        temporary = self.folder / f"{key}.{uuid.uuid4().hex}.part"
        try:
            with temporary.open("wb") as file:
                writer = PackedWriter(file, title)
                yield writer
                writer.finish()
            self._publish(temporary, self._path(key))
        finally:
            temporary.unlink(missing_ok=True)

    def entries(self) -> list[PackedEntry]:
        """Return all conversions, the most recently used first."""
        found = [entry for path in self.folder.glob(f"*{SUFFIX}") if (entry := _entry(path)) is not None]
        return sorted(found, key=lambda entry: -entry.used)

    @property
    def nbytes(self) -> int:
        """Bytes of all conversions together."""
        return sum(entry.nbytes for entry in self.entries())

    def remove(self, key: str) -> int:
        """Delete one conversion; return the bytes freed. Raises OSError if a running program maps it (Windows)."""
        path = self._path(key)
        if not path.exists():
            return 0
        freed = path.stat().st_size
        path.unlink()
        return freed

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _publish(self, temporary: Path, path: Path) -> None:
        try:
            move_over(temporary, path)
        except PermissionError:
            # Windows refuses to replace a file that another process maps; that process has written the same weights.
            if not path.exists():
                raise

    def _remove_abandoned(self) -> None:
        for part in self.folder.glob("*.part"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > ABANDONED_S:
                    part.unlink()


def _entry(path: Path) -> PackedEntry | None:
    try:
        with path.open("rb") as file:
            title = str(_read_index(file)["title"])
        status = path.stat()
    except (OSError, ValueError, KeyError):
        return None
    return PackedEntry(path.name.removesuffix(SUFFIX), title, status.st_size, status.st_mtime)


def _read_index(file: BinaryIO) -> dict[str, Any]:
    """Return the index at the end of a file. Raises ValueError if it is missing or of another version."""
    size = file.seek(0, os.SEEK_END)
    if size < TAIL_BYTES:
        raise ValueError("too short")
    file.seek(size - TAIL_BYTES)
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:8], "little")
    if tail[8:] != MARK or length > size - TAIL_BYTES:
        raise ValueError("not complete")
    file.seek(size - TAIL_BYTES - length)
    index: dict[str, Any] = json.loads(file.read(length))
    if index["version"] != VERSION:
        raise ValueError("another version")
    return index


@contextmanager
def _disk_full_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
        raise DiskFull(
            "The converted weights could not be kept.",
            "The disk is full.",
            "Free some space, or remove converted models that are no longer used.",
        ) from error
