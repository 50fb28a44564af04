"""Multi-head latent attention in one call of our library, for few input rows.

    x -> queries (directly, or by a normed low-rank projection);   x -> latent -> norm | rotary part
    queries x each head's keys -> attention to latents -> x each head's values -> output projection

The new rows' latents are appended to the cached ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_fields import address, addresses, numbers, reals, weights
from core.kernels.native_heads import NativeHeads
from core.kernels.native_layer import NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, rows_of, stretches
from core.kernels.quantized_weight import QuantizedWeight

WAYS = {"unturned": 0, "halves apart": 1, "neighbours apart": 2, "neighbours": 3}
"""Rotary layouts: which columns are rotated in pairs, and where the results are written."""
LEAST_LATENTS = 64
"""Fewer tokens than this are not worth a task of their own; each is seen by all heads."""
ONE_THREAD_BYTES = 64 << 10
"""Attention to fewer bytes of latents than this runs on one thread. Within a call the other threads are still awake."""

_NUMBERS = ("hidden", "heads", "plain", "turned", "rank", "value_dim", "query_rank", "way")


class _LatentLayer(ctypes.Structure):
    """Mirrors `LatentLayer` in latent_layer.c."""

    _fields_ = (
        *numbers(*_NUMBERS),
        *reals("scale"),
        *weights(first=2, queries=1, out=1),
        *((name, NormFields) for name in ("query_norm", "latent_norm")),
        *addresses("keys", "values"),
    )


class _Seen(ctypes.Structure):
    """Mirrors `Seen` in latent_layer.c."""

    _fields_ = (
        *addresses("kept"),
        *numbers("held", "kept_row", "splits", "attention_threads", "angles", "angle_step", "angle_row"),
        *addresses("cos", "sin", "mask"),
        *numbers("mask_row"),
    )


class LatentSizes(NamedTuple):
    """Columns of a head's keys from the latent (`plain`) and with rotary angles (`turned`), of a latent (`rank`), and
    of a head's values (`value`)."""

    heads: int
    plain: int
    turned: int
    rank: int
    value: int


@dataclass(frozen=True, eq=False)
class LatentParts:
    """The parts of a layer.

    `queries`: one query projection, or two with `query_norm` in between. `latents` (rank + turned, K): the down-
    projection, followed by `latent_norm`. `out` (K, heads x value): the output projection. `way`: the rotary layout,
    one of WAYS.
    """

    sizes: LatentSizes
    queries: Sequence[QuantizedWeight]
    query_norm: NormParts | None
    latents: QuantizedWeight
    latent_norm: NormParts
    keys: NativeHeads
    values: NativeHeads
    out: QuantizedWeight
    scale: float
    way: str

    def fit(self) -> bool:
        """Return whether all weights have the sizes that the library expects."""
        heads, plain, turned, rank, value = self.sizes
        hidden, inner = self.out.shape[0], self.queries[0].shape[0]
        expected = [(heads * (plain + turned), hidden)]
        if len(self.queries) > 1:
            expected = [(inner, hidden), (heads * (plain + turned), inner)]
        sized = [weight.shape for weight in self.queries] == expected and self.latents.shape == (rank + turned, hidden)
        normed = len(self.latent_norm.gain) == rank and (
            len(self.queries) == 1 if self.query_norm is None else len(self.query_norm.gain) == inner
        )
        return sized and normed and self.out.shape == (hidden, heads * value) and turned % 2 == 0


@dataclass(frozen=True, eq=False)
class Angles:
    """Cosines and sines (1, M, ...) of the rows' rotary angles, in the rows' type or fp32, `step` elements apart."""

    cos: Tensor
    sin: Tensor
    step: int = 1


class NativeLatent:
    """The call for one layer. All tensors are on the CPU; the parts must `fit`, and the library multiply all
    weights."""

    def __init__(self, library: NativeLibrary, parts: LatentParts) -> None:
        self.library = library
        self.sizes, self.way = parts.sizes, parts.way
        self._held = parts  # keeps the memory alive that the fields point to
        first, *more = parts.queries
        self._fields = _LatentLayer(
            parts.out.shape[0], *parts.sizes, first.shape[0] if more else 0, WAYS[parts.way], parts.scale,
            rows_of(first, parts.latents), rows_of(more[0]) if more else rows_of(first), rows_of(parts.out),
            norm_fields(parts.query_norm), norm_fields(parts.latent_norm), parts.keys.address, parts.values.address,
        )  # fmt: skip
        self._address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor, kept: Tensor, held: int, mask: Tensor | None, angles: Angles | None) -> Tensor:
        """x (1, M, K), contiguous, fp32 or bf16 -> (1, M, K).

        `kept` (1, 1, capacity, rank + turned) of x's type has `held` tokens and room for M more. `mask` (1, 1, M, held
        + M) is bool, True where a token is visible. The last dimension of all is contiguous.
        """
        keys, (mask_row, row) = held + x.shape[1], (0 if mask is None else mask.stride(2), kept.stride(2))
        threads = torch.get_num_threads() if keys * row * kept.element_size() > ONE_THREAD_BYTES else 1
        seen = _Seen(
            kept.data_ptr(), held, row, stretches(1, keys, threads, least=LEAST_LATENTS), threads,
            *((0, 0, 0, None, None) if angles is None else _described(angles)), address(mask), mask_row,
        )  # fmt: skip
        return self.library.latent_layer(self._address, x, ctypes.addressof(seen))


def _described(angles: Angles) -> tuple[int, int, int, int, int]:
    cos, sin = angles.cos, angles.sin
    return TYPES[cos.dtype], angles.step, cos.stride(1), cos.data_ptr(), sin.data_ptr()
