"""The files of a GGUF model, single or split, as one read-only mapping of raw rows; memory-mapped, not read."""

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
    """The settings of the first file and the tensors of all; raw bytes are views that stay valid while they exist."""

    def __init__(self, path: Path) -> None:
        """Map all files and read their headers. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
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
        """Return the bytes of a tensor as (rows, bytes of a row); all dimensions but the last are flattened into
        rows."""
        number, place = self._where[name]
        if place.nbytes == 0:
            return torch.empty((0, 0), dtype=torch.uint8)
        with warnings.catch_warnings():
            # torch warns that the buffer is read-only, which is intended.
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(self._maps[number], dtype=torch.uint8, count=place.nbytes, offset=place.start)
        return flat.view(-1, place.row_bytes)

    def warm(self) -> Iterator[float]:
        """Read the files once, so that they are in the page cache; yield the fraction read."""
        return read_once(self.files)
