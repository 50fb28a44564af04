"""Random weights with a model's real dimensions, for measuring without a download (`--shape NAME`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from core.kernels.large_pages import empty_on_large_pages

# One random block is repeated: drawing every weight of a large model would take minutes.
BLOCK = 1 << 22
STANDARD_DEVIATION = 0.02


class RandomWeights(Mapping[str, Tensor]):
    """A checkpoint generated on access: matrices are normal with standard deviation 0.02, vectors as initialised.

    `checkpoint[name]` is generated anew on each access and not cached.
    """

    def __init__(self, module: Any, seed: int = 0) -> None:
        """`module`: the meta tree whose tensors are wanted."""
        self._tensors: dict[str, Tensor] = dict(module.state_dict())
        for tied in getattr(module, "all_tied_weights_keys", {}):
            self._tensors.pop(tied, None)
        generator = torch.Generator().manual_seed(seed)
        block = torch.empty(BLOCK).normal_(0, STANDARD_DEVIATION, generator=generator)
        self._blocks = {dtype: block.to(dtype) for dtype in {t.dtype for t in self._tensors.values()}}

    def __getitem__(self, name: str) -> Tensor:
        wanted = self._tensors[name]
        if wanted.dim() < 2:
            return torch.zeros(wanted.shape, dtype=wanted.dtype) + (not name.endswith("bias"))
        return self._fill(empty_on_large_pages(wanted.shape, wanted.dtype), 0)

    def part(self, name: str, index: int) -> Tensor:
        """Generate `checkpoint[name][index]` alone."""
        wanted = self._tensors[name][index]
        return self._fill(torch.empty_like(wanted, device="cpu"), index * wanted.numel())

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Generate `checkpoint[name][begin:end]` of a matrix alone."""
        wanted = self._tensors[name][begin:end]
        return self._fill(torch.empty_like(wanted, device="cpu"), begin * wanted.shape[1])

    def _fill(self, weight: Tensor, begin: int) -> Tensor:
        """Fill `weight` with the repeated block from position `begin` on; return it."""
        flat, at = weight.view(-1), 0
        while at < flat.numel():
            piece = self._blocks[weight.dtype][(begin + at) % BLOCK :][: flat.numel() - at]
            flat[at : at + piece.numel()] = piece
            at += piece.numel()
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in self._tensors.values())
