"""Compressed keys and values (multi-head latent attention): one latent per token, projected by each head's weights.

    keys of a head = latent x Wk' | rotary part               values of a head = latent x Wv'

The products are reassociated, so that few queries do not need expanded keys and values of every token:

    q . key = (q x Wk | q rotary) . (latent | rotary)         sum of values = sum of latents x Wv'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from core.kernels.float_stand_in import FloatStandIn
from core.kernels.native_latent import LatentSizes

Expand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A model's expansion of latents (B, 1, T, rank) and rotary parts (B, 1, T, turned) to keys and values."""


class Products(Protocol):
    """Multiplies with the weights (N, K) of all heads."""

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x (1, H, M, K) -> out (1, H, M, N)."""


class FloatProducts:
    """Products with weights in the inputs' floating-point type, by torch."""

    def __init__(self, weights: Tensor) -> None:
        """Take weights (H, K, N)."""
        self._weights = weights

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x (1, H, M, K) -> out (1, H, M, N)."""
        out.copy_(x @ self._weights)


@dataclass(frozen=True, eq=False)
class LatentHeads:
    """The projections of a layer's heads.

    `keys` maps queries (plain -> rank); `values` maps the weighted sums of latents (rank -> value).
    """

    sizes: LatentSizes
    keys: Products
    values: Products
    dtype: torch.dtype

    def queries(self, query: Tensor) -> Tensor:
        """(1, H, M, plain + turned) -> (1, H, M, rank + turned)."""
        sizes = self.sizes
        made = query.new_empty((*query.shape[:3], sizes.rank + sizes.turned))
        self.keys(query[..., : sizes.plain], made[..., : sizes.rank])
        made[..., sizes.rank :] = query[..., sizes.plain :]
        return made

    def results(self, seen: Tensor) -> Tensor:
        """(1, M, H, rank) -> (1, M, H, value)."""
        made = seen.new_empty((*seen.shape[:3], self.sizes.value))
        self.values(seen.transpose(1, 2), made.transpose(1, 2))
        return made


class Latents:
    """The cached latents of all tokens, with both ways to attend to them."""

    def __init__(self, heads: LatentHeads, expand: Expand, rows: Tensor, turned: Tensor) -> None:
        self.heads = heads
        self._expand = expand
        self._rows = rows
        self._turned = turned

    @property
    def side_by_side(self) -> Tensor:
        """Return (1, 1, T, rank + turned), without a copy if the parts are adjacent in memory."""
        found = beside(self._rows, self._turned)
        return torch.cat((self._rows, self._turned), -1) if found is None else found

    @cached_property
    def expanded(self) -> tuple[Tensor, Tensor]:
        """Return keys (1, H, T, plain + turned) and values (1, H, T, value)."""
        return self._expand(self._rows, self._turned)

    def states(self) -> tuple[LatentStates, LatentStates]:
        """Return stand-ins for keys and values that can pass through a model."""
        return LatentStates.of(self, 0), LatentStates.of(self, 1)


def beside(rows: Tensor, turned: Tensor) -> Tensor | None:
    """Return a view (1, 1, T, rank + turned) if each token's parts (1, 1, T, ...) are adjacent in memory, else None."""
    follows = rows.data_ptr() + rows.shape[3] * rows.element_size() == turned.data_ptr()
    if not follows or rows.stride() != turned.stride() or rows.stride(3) != 1:
        return None
    return rows.as_strided((*rows.shape[:3], rows.shape[3] + turned.shape[3]), rows.stride())


class LatentStates(FloatStandIn):
    """Keys (0) or values (1) that are expanded on demand; our attention reads `latents`."""

    latents: Latents
    number: int

    @classmethod
    def of(cls, latents: Latents, number: int) -> LatentStates:
        """Make the stand-in for either."""
        made: LatentStates = Tensor._make_subclass(cls, torch.empty(0))
        made.latents, made.number = latents, number
        return made

    def floats(self) -> Tensor:
        """Return the model's own keys or values, (1, H, T, D)."""
        return self.latents.expanded[self.number]
