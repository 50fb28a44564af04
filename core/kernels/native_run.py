"""Consecutive decoder layers, including their KV caches, as one native call, for few rows of input.

Each layer computes what `native_layer` does. Python and torch take about 80 microseconds between two layers, more than
a small model's products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_fields import addresses, numbers, reals
from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import stretches
from core.kernels.native_mixture import NativeMixture
from core.kernels.packed_width import PACKED

ONE_THREAD_BYTES = 64 << 10
"""With fewer bytes of keys and values, one thread computes attention. Lower than elsewhere: here the pool is awake."""


_PAST = (
    "first", "held", "capacity", "mask_row", "splits", "attention_threads", "packed", "recent_first", "recent_held",
    "recent_capacity", "angles",
)  # fmt: skip


class _Past(ctypes.Structure):
    """Mirrors `Past` in layer.c."""

    _fields_ = (*numbers(*_PAST), *addresses("cos", "sin", "mask"))


class _Placed(ctypes.Structure):
    """Mirrors `Placed` in layer.c."""

    _fields_ = (
        *addresses("layer", "past", "keys", "values", "recent_keys", "recent_values", "sinks"),
        *reals("scale"),
        *addresses("mixture", "side"),
        *numbers("side_row"),
    )


@dataclass(frozen=True, eq=False)
class RunLayer:
    """One layer of a run.

    `sinks` (H,) of fp32 and `scale` belong to its attention; `mixture`: its experts, if any, computed by the layer's
    library; `kind`: an index from 0, equal for layers that see the same tokens with heads of the same size.
    """

    native: NativeLayer
    sinks: Tensor | None
    scale: float
    mixture: NativeMixture | None = None
    kind: int = 0


@dataclass(frozen=True, eq=False)
class Sight:
    """The tokens that layers of one kind attend to: `held` cached ones from cache position `first` on, then the M new
    ones.

    The `recent` newest tokens of packed caches are read unpacked, from position `recent_first` on.
    cos and sin are (1, M, turned) of the layers' type or fp32; mask is (1, 1, M, held + M) of bool, rows contiguous.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    first: int
    held: int
    recent_first: int = 0
    recent: int = 0


class NativeRun:
    """Layers of one width, one type and one instruction set, and the addresses of their KV caches."""

    def __init__(self, layers: Sequence[RunLayer]) -> None:
        self._held = layers  # keeps alive what the fields point to
        self._library = layers[0].native.library
        self._ones = {layer.kind: layer.native for layer in layers}
        self._pasts = (_Past * (1 + max(self._ones)))()
        self._placed = (_Placed * len(layers))(*map(self._in_place, layers))
        self._buffers: list[ref[Tensor]] = []

    def hold(self, caches: Sequence[Sequence[Tensor]]) -> None:
        """Set the KV caches of all layers for the next calls, (1, KVH, capacity, ...) each: see `place`."""
        for number, cache in enumerate(caches):
            self.place(number, *cache)
        self._buffers = [ref(tensor) for cache in caches for tensor in cache]

    def holds(self, buffers: Sequence[Tensor]) -> bool:
        """Return whether these tensors (1, KVH, capacity, ...) are those that were set last, in the order of layers."""
        known = self._buffers
        return len(buffers) == len(known) and all(one() is buffer for one, buffer in zip(known, buffers, strict=True))

    def place(self, number: int, keys: Tensor, values: Tensor, *recent: Tensor) -> None:
        """Set the KV cache of layer `number` for the next call: `keys`, `values` (1, KVH, capacity, dim), contiguous.

        Packed ones are (1, KVH, capacity, packed_width(dim)), as then for all layers of the kind; `recent` holds the
        newest keys and values unpacked, with a capacity of their own. The run keeps no reference, so a replaced cache
        can be freed.
        """
        placed, past = self._placed[number], self._pasts[self._held[number].kind]
        placed.keys, placed.values = keys.data_ptr(), values.data_ptr()
        past.capacity, past.packed = keys.shape[2], keys.dtype is PACKED
        if past.packed:
            placed.recent_keys, placed.recent_values = (one.data_ptr() for one in recent)
            past.recent_capacity = recent[0].shape[2]

    def __call__(self, x: Tensor, sights: Mapping[int, Sight], sides: Sequence[Tensor] = ()) -> Tensor:
        """Return x (1, M, K) after all layers, (1, M, K). `sights`: by kind of layer; `sides`: the side input
        (1, M, P) of each layer, rows contiguous, if they take any."""
        for kind, sight in sights.items():
            self._look(kind, sight, x)
        for placed, side in zip(self._placed, sides, strict=False):
            placed.side, placed.side_row = side.data_ptr(), side.stride(1)
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
