"""Decoder layers that follow each other, with their keys and values, in one call of our library, for few rows of input.

The work is that of `native_layer`, layer after layer. Python and torch take some 80 microseconds between two layers,
which is more than a small model's products take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import stretches

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p
ONE_THREAD_BYTES = 64 << 10
"""Below this many bytes of keys and values one thread attends to them: within a call the others are awake."""


class _Placed(ctypes.Structure):
    """`Placed` of layer.c."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("layer", "keys", "values", "sinks")),
        ("scale", ctypes.c_double),
    )


class _Past(ctypes.Structure):
    """`Past` of layer.c."""

    _fields_ = tuple((name, _INT) for name in ("held", "capacity", "mask_row", "splits", "attention_threads"))


class NativeRun:
    """So many layers of one size, of one type and for one instruction set, and where their keys and values are."""

    def __init__(self, layers: Sequence[NativeLayer], sinks: Sequence[Tensor | None], scales: Sequence[float]) -> None:
        """`sinks` (H,) of fp32, `scales` of the scores: of each layer's attention."""
        self._first = layers[0]
        self._held = layers, sinks  # their addresses are in the fields
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * len(layers)
        self._placed = (_Placed * len(layers))()
        self._past = _Past()
        for placed, layer, sink, scale in zip(self._placed, layers, sinks, scales, strict=True):
            placed.layer, placed.scale = layer.address, scale
            placed.sinks = None if sink is None else sink.data_ptr()

    def place(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Layer `number` keeps its keys and values there from now on, (1, KVH, capacity, dim) each, contiguous."""
        kept = self._kept[number]
        if kept is None or kept[0] is not keys or kept[1] is not values:
            self._kept[number] = keys, values
            self._placed[number].keys, self._placed[number].values = keys.data_ptr(), values.data_ptr()
            self._past.capacity = keys.shape[2]

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, held: int) -> Tensor:
        """x (1, M, K) -> (1, M, K). Keys and values of the M tokens are written behind the `held` ones of each layer.

        cos and sin (1, M, dim) of its type or fp32, mask (1, 1, M, held + M) of bool; all contiguous in the last.
        """
        first, m = self._first, x.shape[1]
        nbytes = 2 * first.kv_heads * (held + m) * first.dim * x.element_size()
        threads = torch.get_num_threads() if nbytes > ONE_THREAD_BYTES else 1
        self._past.held, self._past.attention_threads = held, threads
        self._past.mask_row = 0 if mask is None else mask.stride(2)
        self._past.splits = stretches(first.kv_heads, held + m, threads)
        return first.library.layers(
            ctypes.addressof(self._placed), len(self._placed), ctypes.addressof(self._past), x, cos, sin, mask
        )
