"""Decoder layers that follow each other, with their keys and values, in one call of our library, for few rows of input.

The work is that of `native_layer`, layer after layer. Python and torch take some 80 microseconds between two layers,
which is more than a small model's products take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import stretches
from core.kernels.native_mixture import NativeMixture
from core.kernels.packed_width import PACKED

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p
ONE_THREAD_BYTES = 64 << 10
"""Below this many bytes of keys and values one thread attends to them: within a call the others are awake."""


_PAST = (
    "first", "held", "capacity", "mask_row", "splits", "attention_threads", "packed", "recent_first", "recent_held",
    "recent_capacity", "angles",
)  # fmt: skip


class _Past(ctypes.Structure):
    """`Past` of layer.c."""

    _fields_ = (*((name, _INT) for name in _PAST), *((name, _ADDRESS) for name in ("cos", "sin", "mask")))


class _Placed(ctypes.Structure):
    """`Placed` of layer.c."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("layer", "past", "keys", "values", "recent_keys", "recent_values", "sinks")),
        ("scale", ctypes.c_double),
        ("mixture", _ADDRESS),
    )


@dataclass(frozen=True, eq=False)
class RunLayer:
    """One layer of a run: `sinks` (H,) of fp32 and `scale` of its attention's scores; `mixture`: its experts, if
    it has any, which are computed by the layer's library; `kind`: the same for layers that see the same tokens and have
    heads of one size, counted from 0."""

    native: NativeLayer
    sinks: Tensor | None
    scale: float
    mixture: NativeMixture | None = None
    kind: int = 0


@dataclass(frozen=True, eq=False)
class Sight:
    """What layers of one kind see: `held` tokens from place `first` of those kept on, and the M new ones behind them.
    Of packed ones the `recent` newest are seen as they were, from place `recent_first` on.

    cos and sin (1, M, turned) of the layers' type or fp32, mask (1, 1, M, held + M) of bool, rows contiguous.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    first: int
    held: int
    recent_first: int = 0
    recent: int = 0


class NativeRun:
    """Layers of one width, of one type and for one instruction set, and where their keys and values are."""

    def __init__(self, layers: Sequence[RunLayer]) -> None:
        self._held = layers  # their addresses are in the fields
        self._library = layers[0].native.library
        self._ones = {layer.kind: layer.native for layer in layers}
        self._pasts = (_Past * (1 + max(self._ones)))()
        self._placed = (_Placed * len(layers))(*map(self._in_place, layers))

    def place(self, number: int, keys: Tensor, values: Tensor, *recent: Tensor) -> None:
        """Layer `number` keeps its keys and values there in the next call, (1, KVH, capacity, dim) each, contiguous;
        or (1, KVH, capacity, packed_width(dim)) where they are packed, as those of all layers of its kind are then, and
        the newest in two more of any capacity as they are.

        They are not held: a cache that another has replaced has to go.
        """
        placed, past = self._placed[number], self._pasts[self._held[number].kind]
        placed.keys, placed.values = keys.data_ptr(), values.data_ptr()
        past.capacity, past.packed = keys.shape[2], keys.dtype is PACKED
        if past.packed:
            placed.recent_keys, placed.recent_values = (one.data_ptr() for one in recent)
            past.recent_capacity = recent[0].shape[2]

    def __call__(self, x: Tensor, sights: Mapping[int, Sight]) -> Tensor:
        """x (1, M, K) -> (1, M, K). `sights`: by kind of layer."""
        for kind, sight in sights.items():
            self._look(kind, sight, x)
        return self._library.layers(ctypes.addressof(self._placed), len(self._placed), x)

    def _look(self, kind: int, sight: Sight, x: Tensor) -> None:
        past, one, keys = self._pasts[kind], self._ones[kind], sight.held + x.shape[1]
        nbytes = 2 * one.kv_heads * keys * one.dim * x.element_size()
        threads = torch.get_num_threads() if nbytes > ONE_THREAD_BYTES else 1
        past.first, past.held, past.attention_threads = sight.first, sight.held, threads
        past.recent_first, past.recent_held = sight.recent_first, sight.recent
        past.splits = stretches(one.kv_heads, keys, threads, sight.recent + x.shape[1] if past.packed else 0)
        past.angles = TYPES[sight.cos.dtype]
        past.cos, past.sin = sight.cos.data_ptr(), sight.sin.data_ptr()
        past.mask, past.mask_row = None, 0
        if sight.mask is not None:
            past.mask, past.mask_row = sight.mask.data_ptr(), sight.mask.stride(2)

    def _in_place(self, layer: RunLayer) -> _Placed:
        sinks = None if layer.sinks is None else layer.sinks.data_ptr()
        mixture = None if layer.mixture is None else layer.mixture.address
        past = ctypes.addressof(self._pasts[layer.kind])
        return _Placed(layer=layer.native.address, past=past, sinks=sinks, scale=layer.scale, mixture=mixture)
