"""A quantised checkpoint as a mapping by the names its weights would have unquantised: as numbers, or packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelUnreadable
from core.kernels.quantized_weight import QuantizedWeight
from core.sentence import sentence
from core.weights.checkpoint import DTYPES, Checkpoint, main_dtype
from core.weights.safetensors_header import TensorInfo
from core.weights.stored.coded import Coded
from core.weights.stored.find import Found, StoredWeight, find_stored
from core.weights.stored.settings import Settings
from core.weights.stored_formats import StoredFormat

LOOKED_AT = ("zeros", "order", "state", "book")
"""Parts whose values decide the storage or shape."""


class StoredCheckpoint(Mapping[str, Tensor]):
    """Tensors by name, dequantised on access. Names in `kept` give zeros that occupy no memory: `packed` returns their
    weights."""

    def __init__(self, checkpoint: Checkpoint, stored: StoredFormat) -> None:
        """Raises UnsupportedModel, ModelUnreadable if a weight cannot be read."""
        self.found = find_stored(checkpoint.infos, stored)
        self.dtype = main_dtype(self.found.plain)
        self.kept: frozenset[str] = frozenset()
        self._checkpoint = checkpoint
        self._settings = stored.settings
        self.sketches = sketches(self.found, stored.settings, checkpoint)

    def __getitem__(self, name: str) -> Tensor:
        weight = self.found.weights.get(name)
        if weight is None:
            return self._checkpoint[name]
        if name in self.kept:
            return torch.zeros((), dtype=self.dtype).expand(self._shape(weight))
        return self._numbers(weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self.found.names)

    def __len__(self) -> int:
        return len(self.found.names)

    @property
    def files(self) -> list[Path]:
        """The files of the weights."""
        return self._checkpoint.files

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return self._checkpoint.nbytes

    def warm(self) -> Iterator[float]:
        """Read the files into the page cache; yield the fraction done."""
        return self._checkpoint.warm()

    def let_go(self) -> None:
        """Drop the pages read so far from this process's resident set."""
        self._checkpoint.let_go()

    def packed(self, name: str, expert: int | None = None) -> QuantizedWeight:
        """Return one weight, or one expert's part of it, in the storage that keeps it exactly."""
        storage = self.sketches[name].storage
        assert storage is not None
        return self._coded(self.found.weights[name], expert).packed(storage)

    def _numbers(self, weight: StoredWeight) -> Tensor:
        if not weight.has_experts:
            return self._coded(weight).numbers(self.dtype)
        experts = (self._coded(weight, expert).numbers(self.dtype) for expert in range(self._shape(weight)[0]))
        whole = torch.stack(list(experts))
        return whole.transpose(1, 2) if weight.kind.turned else whole

    def _shape(self, weight: StoredWeight) -> tuple[int, ...]:
        rows, columns = self.sketches[weight.name].codes.shape
        if not weight.has_experts:
            return rows, columns
        return (weight.parts["codes"].shape[0], *((columns, rows) if weight.kind.turned else (rows, columns)))

    def _coded(self, weight: StoredWeight, expert: int | None = None) -> Coded:
        parts = {role: self._checkpoint[info.name] for role, info in weight.parts.items()}
        if expert is not None:
            parts = {role: part[expert] if part.dim() else part for role, part in parts.items()}
        return decoded(weight, parts, self._settings)


def sketches(found: Found, settings: Settings, checkpoint: Mapping[str, Tensor] | None = None) -> dict[str, Coded]:
    """Decode weights on the meta device: the shape of each, and the storage that can keep it. `checkpoint` is None if
    only headers are known; then the settings are trusted. Raises ModelUnreadable, UnsupportedModel."""
    alike: dict[Any, Coded] = {}
    made: dict[str, Coded] = {}
    for name, weight in found.weights.items():
        looked_at = [role for role in LOOKED_AT if role in weight.parts]
        if checkpoint is not None and looked_at:
            known = {role: checkpoint[weight.parts[role].name] for role in looked_at}
            made[name] = _sketch(weight, settings, known)
        else:
            made[name] = alike.get(weight.form) or alike.setdefault(weight.form, _sketch(weight, settings, {}))
    return made


def _sketch(weight: StoredWeight, settings: Settings, known: Mapping[str, Tensor]) -> Coded:
    parts = {role: _without_numbers(info) for role, info in weight.parts.items()} | dict(known)
    if weight.has_experts:
        parts = {role: part[0] if part.dim() else part for role, part in parts.items()}
    return decoded(weight, parts, settings)


def _without_numbers(info: TensorInfo) -> Tensor:
    return torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")


def decoded(weight: StoredWeight, parts: Mapping[str, Tensor], settings: Settings) -> Coded:
    """Decode a weight into codes and scales. Raises ModelUnreadable if they do not fit together."""
    try:
        coded = weight.kind.decode(parts, settings)
        rows, columns = coded.codes.shape
        grid = (-(-rows // coded.block[0]), -(-columns // coded.block[1]))
        beside = [part for part in (coded.scales, coded.zeros) if part is not None]
        if any(tuple(part.shape) != grid for part in beside) or not _is_order(coded):
            raise ValueError(grid)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ModelUnreadable(
            sentence("The parts of the quantised weight {} do not fit together.", weight.name), "",
            "Download the model again.",
        ) from error  # fmt: skip
    return coded


def _is_order(coded: Coded) -> bool:
    order = coded.order
    if order is None or order.is_meta:
        return True
    return order.shape == coded.codes.shape[1:] and bool(((order >= 0) & (order < coded.scales.shape[1])).all())
