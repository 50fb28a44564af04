"""The files of a model in GGUF, one or split, as one read-only mapping of raw rows, mapped into memory, not read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from core.weights.gguf.header import Settings, TensorPlace
from core.weights.gguf.parts import open_parts
from core.weights.mapped_file import read_once


class GgufFiles:
    """Settings of the first file, tensors of all; raw bytes are views that stay valid as long as they live."""

    def __init__(self, path: Path) -> None:
        """Maps all files and reads their headers. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
        parts = open_parts(path)
        self.files, self._maps = parts.files, parts.maps
        self.settings: Settings = parts.settings
        self._where = parts.where
        self.tensors: dict[str, TensorPlace] = {name: place for name, (_, place) in self._where.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for place in self.tensors.values())

    def raw(self, name: str) -> Tensor:
        """The bytes of a tensor, (rows, bytes of a row), all dimensions but the last taken as rows."""
        number, place = self._where[name]
        if place.nbytes == 0:
            return torch.empty((0, 0), dtype=torch.uint8)
        with warnings.catch_warnings():
            # torch warns that the buffer is read-only, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(self._maps[number], dtype=torch.uint8, count=place.nbytes, offset=place.start)
        return flat.view(-1, place.row_bytes)

    def warm(self) -> Iterator[float]:
        """Read the files once, so that the mapping finds its pages in memory; yields the fraction read."""
        return read_once(self.files)
