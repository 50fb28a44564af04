"""Decoder layers that follow each other, with their keys and values, in one call of our library, for few rows of input.

The work is that of `native_layer`, layer after layer. Python and torch take some 80 microseconds between two layers,
which is more than a small model's products take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import stretches
from core.kernels.native_mixture import NativeMixture
from core.kernels.packed_width import PACKED

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p
ONE_THREAD_BYTES = 64 << 10
"""Below this many bytes of keys and values one thread attends to them: within a call the others are awake."""


_PAST = ("first", "held", "capacity", "mask_row", "splits", "attention_threads", "packed")


class _Placed(ctypes.Structure):
    """`Placed` of layer.c."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("layer", "keys", "values", "sinks")),
        ("scale", ctypes.c_double),
        ("mixture", _ADDRESS),
    )


class _Past(ctypes.Structure):
    """`Past` of layer.c."""

    _fields_ = tuple((name, _INT) for name in _PAST)


@dataclass(frozen=True, eq=False)
class RunLayer:
    """One layer of a run: `sinks` (H,) of fp32 and `scale` of its attention's scores; `mixture`: its experts, if
    it has any, which are computed by the layer's library."""

    native: NativeLayer
    sinks: Tensor | None
    scale: float
    mixture: NativeMixture | None = None


class NativeRun:
    """Layers of one size, of one type and for one instruction set, and where their keys and values are."""

    def __init__(self, layers: Sequence[RunLayer]) -> None:
        self._one = layers[0].native
        self._held = layers  # their addresses are in the fields
        self._placed = (_Placed * len(layers))(*map(_placed, layers))
        self._past = _Past()

    def place(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Layer `number` keeps its keys and values there in the next call, (1, KVH, capacity, dim) each, contiguous;
        or (1, KVH, capacity, packed_width(dim)) where they are packed, as those of all layers are then.

        They are not held: a cache that another has replaced has to go.
        """
        placed = self._placed[number]
        placed.keys, placed.values = keys.data_ptr(), values.data_ptr()
        self._past.capacity, self._past.packed = keys.shape[2], keys.dtype is PACKED

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, first: int, held: int) -> Tensor:
        """x (1, M, K) -> (1, M, K). Attention sees `held` tokens from place `first` on, of each layer's, and the M
        tokens whose keys and values are written behind them.

        cos and sin (1, M, turned) of its type or fp32, mask (1, 1, M, held + M) of bool; all contiguous in the last.
        """
        one, m = self._one, x.shape[1]
        nbytes = 2 * one.kv_heads * (held + m) * one.dim * x.element_size()
        threads = torch.get_num_threads() if nbytes > ONE_THREAD_BYTES else 1
        self._past.first, self._past.held, self._past.attention_threads = first, held, threads
        self._past.mask_row = 0 if mask is None else mask.stride(2)
        self._past.splits = stretches(one.kv_heads, held + m, threads)
        return one.library.layers(
            ctypes.addressof(self._placed), len(self._placed), ctypes.addressof(self._past), x, cos, sin, mask
        )


def _placed(layer: RunLayer) -> _Placed:
    sinks = None if layer.sinks is None else layer.sinks.data_ptr()
    mixture = None if layer.mixture is None else layer.mixture.address
    return _Placed(layer.native.address, None, None, sinks, layer.scale, mixture)
