"""All weights of a model in the planned format: as stored, from the disk cache, or converted and cached."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.errors import DiskFull
from core.kernels.autotune import KernelTable
from core.kernels.large_pages import empty_on_large_pages
from core.kernels.matmul import ChosenMatmul, host_matmul
from core.kernels.quantize import quantize, quantize_into, quantize_pieces
from core.kernels.quantized_weight import QuantizedWeight, empty_stack
from core.model.linear_weights import matrices, matrix_names, release
from core.model.model_source import Source
from core.model.postponed import Postponed, parameter_name
from core.offload.host_weight import HostWeight
from core.spec import HEAD_COPY, ITEM_BYTES, LAYOUTS, Format, LinearSpec, ModelSpec, Storage
from core.weights.packed_cache import PackedCache, cache_key
from core.weights.row_chunks import row_chunks

FOLDER = "packed"
HEAD_COPY_NAME = "output head, copied"

log = logging.getLogger(__name__)


class HostWeights(Mapping[str, Sequence[HostWeight]]):
    """The host weights of each linear by its name in the plan. Empty until `make` is exhausted."""

    def __init__(
        self, source: Source, spec: ModelSpec, format: Format, kernels: KernelTable, folder: Path,
        postponed: Postponed | None = None, *, head_copy: bool = False,
    ) -> None:  # fmt: skip
        """`folder`: where converted weights are cached (weights that are used as stored need no cache). `postponed`:
        weights that the source's tree does not hold yet. `head_copy`: whether to make the coarse copy of the output
        head."""
        self._source = source
        self._spec = spec
        self._format: Format = format
        self._kernels = kernels
        self._cache = PackedCache(folder / FOLDER)
        self._postponed = postponed or Postponed()
        self._head_copy = head_copy and spec.head_copy(format) > 0
        self._made: dict[str, list[HostWeight]] = {}

    def __getitem__(self, name: str) -> list[HostWeight]:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def make(self) -> Iterator[float]:
        """Take, find or convert one linear after another; yield the fraction done."""
        kept: Mapping[str, QuantizedWeight] | None = None
        if self._source.files and not self._lies_ready():
            key = cache_key(self._source.files, self._recipe())
            if self._cache.open(key) is None:
                yield from self._convert_to_disk(key)
            kept = self._cache.open(key)
        for done, linear in enumerate(self._spec.linears, 1):
            found = (
                self._gathered(linear)
                if kept is None
                else (kept[name] for name in matrix_names(linear.name, linear.experts))
            )
            copy = self._copy(kept) if self._head_copy and linear.name == self._spec.head else None
            self._made[linear.name] = [
                HostWeight(self._ready(weight), self._source.module.dtype, copy) for weight in found
            ]
            release(self._source.module, linear)
            yield done / len(self._spec.linears)

    def _lies_ready(self) -> bool:
        """Return whether all weights can be used as they are in the model's files."""
        storages = {linear: self._spec.storage(linear, self._format) for linear in self._spec.linears}
        floats = "fp8" in storages.values() and all(_is_ready(*pair) for pair in storages.items())
        return floats or self._spec.mapped(self._format)

    def _convert_to_disk(self, key: str) -> Iterator[float]:
        """Convert to the disk cache; as weights are mapped from it afterwards, only one is in memory at a time."""
        try:
            with self._cache.write(key, self._source.name) as writer:
                for done, linear in enumerate(self._spec.linears, 1):
                    for name, weight in zip(
                        matrix_names(linear.name, linear.experts),
                        self._converted(linear, self._storage(linear)),
                        strict=True,
                    ):
                        writer.add(name, weight)
                    if linear.name == self._spec.head and self._spec.head_copy(self._format):
                        # Cached even if there is no memory for it now: unused, it only occupies disk space.
                        writer.add(HEAD_COPY_NAME, next(self._converted(linear, HEAD_COPY)))
                    yield done / len(self._spec.linears)
        except (DiskFull, OSError) as error:  # disk full, read-only or unplugged
            # Without the cache, weights are converted at every load, which is only slower.
            log.warning("Converted weights are not kept: %s", error)

    def _recipe(self) -> str:
        """Return the cache key's part for the conversion: the storages of the linears."""
        storages = [self._storage(linear) for linear in self._spec.linears]
        copied = f"+{HEAD_COPY}" if self._spec.head_copy(self._format) else ""
        return self._source.part + (storages[0] if len(set(storages)) == 1 else ",".join(storages)) + copied

    def _copy(self, kept: Mapping[str, QuantizedWeight] | None) -> ChosenMatmul:
        """Return the output head's coarse copy, from the cache or converted."""
        head = next(linear for linear in self._spec.linears if linear.name == self._spec.head)
        return self._ready(next(self._converted(head, HEAD_COPY)) if kept is None else kept[HEAD_COPY_NAME])

    def _gathered(self, linear: LinearSpec) -> Iterator[QuantizedWeight]:
        """Convert as `_converted`, but experts into one allocation: separate ones would fragment the heap."""
        storage = self._storage(linear)
        if linear.experts is None or self._spec.mapped(self._format):
            yield from self._converted(linear, storage)
        elif linear.stored is None and storage in LAYOUTS:
            places = empty_stack(storage, linear.experts, linear.rows, linear.columns)
            yield from (quantize_into(*pair) for pair in zip(self._matrices(linear), places, strict=True))
            self._source.let_go()
        else:
            yield from self._laid_together(linear, storage)

    def _laid_together(self, linear: LinearSpec, storage: Storage) -> Iterator[QuantizedWeight]:
        """Copy experts, as they are converted, into one allocation."""
        pieces: list[Tensor] = []
        for index, weight in enumerate(self._converted(linear, storage)):
            pieces = pieces or [
                empty_on_large_pages((linear.matrices, *part.shape), part.dtype) for part in weight.tensors
            ]
            for piece, part in zip(pieces, weight.tensors, strict=True):
                piece[index] = part
            data, *rest = (piece[index] for piece in pieces)
            yield replace(weight, data=data, scales=rest[0] if rest else None)

    def _storage(self, linear: LinearSpec) -> Storage:
        return self._spec.storage(linear, self._format)

    def _converted(self, linear: LinearSpec, storage: Storage) -> Iterator[QuantizedWeight]:
        if linear.stored is not None:
            weights = (self._source.packed[name] for name in matrix_names(linear.name, linear.experts))
            yield from (weight if weight.storage == storage else _requantized(weight, storage) for weight in weights)
        elif storage not in ITEM_BYTES and self._postponed.is_by_rows(self._source.module, linear):
            pieces = self._postponed.pieces(self._source.module, linear)
            yield quantize_pieces(pieces, storage, linear.rows, linear.columns)
        else:
            yield from (quantize(matrix, storage) for matrix in self._matrices(linear))
        self._source.let_go()

    def _matrices(self, linear: LinearSpec) -> Iterator[Tensor]:
        module = self._source.module
        later = parameter_name(module, linear) in self._postponed
        return self._postponed.matrices(module, linear) if later else matrices(module, linear)

    def _ready(self, weight: QuantizedWeight) -> ChosenMatmul:
        return host_matmul(weight, self._kernels.names(weight.storage, *weight.shape))


def _is_ready(linear: LinearSpec, storage: Storage) -> bool:
    """Return whether a linear of an FP8 model is used as stored: as 16-bit numbers, or in FP8 without padding."""
    if linear.experts is not None:
        return False
    if storage in ITEM_BYTES:
        return not linear.converted
    return linear.stored == storage == "fp8" and linear.columns % LAYOUTS[storage].width == 0


def _requantized(weight: QuantizedWeight, storage: Storage) -> QuantizedWeight:
    """Convert a weight of the files to a storage with fewer bits."""
    parts = (weight.rows(begin, end) for begin, end in row_chunks(*weight.shape))
    return quantize_pieces((part.dequantize(torch.float32) for part in parts), storage, *weight.shape)
