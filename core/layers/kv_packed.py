"""Keys and values of one layer in 8 bits: half the memory, wherever they lie.

Our attention reads packed rows as they are where the CPU computes few rows, and widens them elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.kernels.packed_states import PackedRows, pack, widen
from core.kernels.packed_width import PACKED, packed_width
from core.layers.kv_layers import PreallocatedLayer, SlidingLayer


class PackedLayer(PreallocatedLayer):
    """Packed keys and values of one full-attention layer: (1, heads, capacity, bytes of a row) each."""

    _floats = torch.float32

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(_packed_like(key_states), _packed_like(value_states))

    def _write(self, begin: int, end: int, key_states: Tensor, value_states: Tensor) -> None:
        self._floats = key_states.dtype
        pack(key_states, self.keys[:, :, begin:end], mixed=True)
        pack(value_states, self.values[:, :, begin:end], mixed=False)

    def _hand_over(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[:, :, begin:end], self.values[:, :, begin:end]
        if self.home is None:
            return PackedRows.of(keys, self._floats, mixed=True), PackedRows.of(values, self._floats, mixed=False)
        keys, values = widen(keys, self._floats, mixed=True), widen(values, self._floats, mixed=False)
        return keys.to(self.home), values.to(self.home)


class PackedSlidingLayer(PackedLayer, SlidingLayer):
    """The same of a layer that sees a window."""


def _packed_like(states: Tensor) -> Tensor:
    """A tensor without memory of the shape and type that packed states have; they may be packed already."""
    if states.dtype is PACKED:
        return states
    return torch.empty((*states.shape[:3], packed_width(states.shape[3])), dtype=PACKED, device="meta")
