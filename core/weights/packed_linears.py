"""Linears that stay packed as in the model's files, by the names of the plan's matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from core.kernels.quantized_weight import QuantizedWeight

Piece = tuple[str, int | None]
"""A weight of the files, and the index of the expert; None for weights without experts."""


class PackedLinears(Mapping[str, QuantizedWeight]):
    """Repacks each weight on access; nothing is cached."""

    def __init__(
        self, packed: Callable[[str, int | None], QuantizedWeight], pieces: Mapping[str, Sequence[Piece]]
    ) -> None:
        """`packed` makes a piece; the rows of a matrix's `pieces` are concatenated."""
        self._packed = packed
        self._pieces = pieces

    def __getitem__(self, name: str) -> QuantizedWeight:
        return joined([self._packed(*piece) for piece in self._pieces[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def joined(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Concatenate the rows of weights of one storage and width."""
    if len(weights) == 1:
        return weights[0]
    data, *rest = (torch.cat(parts) for parts in zip(*(weight.tensors for weight in weights), strict=True))
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    return replace(weights[0], shape=shape, data=data, scales=rest[0] if rest else None)
