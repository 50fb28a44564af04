"""Attention to compressed keys and values in one call of our library, for few rows of input.

    x -> queries (by way of fewer numbers, normed, or at once);   x -> latent -> norm | columns that positions turn
    queries x each head's keys -> attention to latents -> x each head's values -> product

The new rows' latents are put behind those that are kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.native_abi import PART_FIELDS, TYPES
from core.kernels.native_heads import NativeHeads
from core.kernels.native_layer import NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, Parts, stretches
from core.kernels.quantized_weight import QuantizedWeight

WAYS = {"unturned": 0, "halves apart": 1, "neighbours apart": 2, "neighbours": 3}
"""Which columns positions turn into each other, and where the results lie."""
LEAST_LATENTS = 64
"""Tokens that are worth a task of their own: all heads see each of them."""
ONE_THREAD_BYTES = 64 << 10
"""Below this many bytes of latents one thread attends to them: within a call the others are awake."""

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p
_NUMBERS = ("hidden", "heads", "plain", "turned", "rank", "value_dim", "query_rank", "way")


class _LatentLayer(ctypes.Structure):
    """`LatentLayer` of latent_layer.c."""

    _fields_ = (
        *((name, _INT) for name in _NUMBERS),
        ("scale", ctypes.c_double),
        *((name, _INT * (count * PART_FIELDS)) for name, count in (("first", 2), ("queries", 1), ("out", 1))),
        *((name, NormFields) for name in ("query_norm", "latent_norm")),
        *((name, _ADDRESS) for name in ("keys", "values")),
    )


class _Seen(ctypes.Structure):
    """`Seen` of latent_layer.c."""

    _fields_ = (
        ("kept", _ADDRESS),
        *(
            (name, _INT)
            for name in ("held", "kept_row", "splits", "attention_threads", "angles", "angle_step", "angle_row")
        ),
        *((name, _ADDRESS) for name in ("cos", "sin", "mask")),
        ("mask_row", _INT),
    )


class LatentSizes(NamedTuple):
    """Columns of a head: of its keys those that a latent brings, and those that positions turn; of a latent; of its
    values."""

    heads: int
    plain: int
    turned: int
    rank: int
    value: int


@dataclass(frozen=True, eq=False)
class LatentParts:
    """What such attention consists of. `queries`: the weights that make them, one, or two with `query_norm` between;
    `latents` (rank + turned, K) and `latent_norm` of what they make; `out` (K, heads x value). `way`: one of WAYS."""

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
        """Whether the weights are of the sizes that the library takes for granted."""
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
    """Cosines and sines (1, M, ...) of the angles that rows are turned by, of the rows' type or fp32, `step` numbers
    apart."""

    cos: Tensor
    sin: Tensor
    step: int = 1


class NativeLatent:
    """One layer's call. All tensors are on the CPU; the parts must `fit`, and the library multiply all weights."""

    def __init__(self, library: NativeLibrary, parts: LatentParts) -> None:
        self.library = library
        self.sizes, self.way = parts.sizes, parts.way
        self._held = parts  # their addresses are in the fields
        first, *more = parts.queries
        self._fields = _LatentLayer(
            parts.out.shape[0], *parts.sizes, first.shape[0] if more else 0, WAYS[parts.way], parts.scale,
            _products(first, parts.latents), _products(more[0]) if more else _products(first), _products(parts.out),
            norm_fields(parts.query_norm), norm_fields(parts.latent_norm), parts.keys.address, parts.values.address,
        )  # fmt: skip
        self._address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor, kept: Tensor, held: int, mask: Tensor | None, angles: Angles | None) -> Tensor:
        """x (1, M, K), contiguous, of fp32 or bf16 -> (1, M, K).

        `kept` (1, 1, capacity, rank + turned) of its type: `held` tokens are seen, and room for M behind them. `mask`
        (1, 1, M, held + M) of bool, True where a token is seen. Columns of all are contiguous.
        """
        keys, (mask_row, row) = held + x.shape[1], (0 if mask is None else mask.stride(2), kept.stride(2))
        threads = torch.get_num_threads() if keys * row * kept.element_size() > ONE_THREAD_BYTES else 1
        seen = _Seen(
            kept.data_ptr(), held, row, stretches(1, keys, threads, least=LEAST_LATENTS), threads,
            *((0, 0, 0, None, None) if angles is None else _described(angles)), _at(mask), mask_row,
        )  # fmt: skip
        return self.library.latent_layer(self._address, x, ctypes.addressof(seen))


def _described(angles: Angles) -> tuple[int, int, int, int, int]:
    cos, sin = angles.cos, angles.sin
    return TYPES[cos.dtype], angles.step, cos.stride(1), cos.data_ptr(), sin.data_ptr()


def _products(*weights: QuantizedWeight) -> ctypes.Array[ctypes.c_int64]:
    return Parts([(weight, 0, weight.shape[0]) for weight in weights]).fields


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
