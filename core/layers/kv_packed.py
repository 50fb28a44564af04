"""Keys and values of a layer packed in 8 bits, which halves their memory; the newest also unpacked.

For few rows, our attention on the CPU reads packed rows directly; elsewhere they are widened.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.kernels.packed_states import PackedRows, Stored, hadamard, pack, widen
from core.kernels.packed_width import PACKED, packed_width
from core.layers.kv_layers import Allocate, PreallocatedLayer, SlidingLayer, TokenPlace
from core.layers.kv_recent import RecentStates
from core.spec import RECENT_ROOM


class PackedLayer(PreallocatedLayer):
    """Packed keys and values of a full-attention layer: (1, heads, capacity, bytes per row) each."""

    recent: RecentStates
    _transform: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(_packed_like(key_states), _packed_like(value_states))
        self.recent = RecentStates()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*super().tensors, *self.recent.tensors) if self.is_initialized else ()

    @property
    def floats(self) -> torch.dtype | None:
        return self.recent.dtype if self.is_initialized else None

    def recent_room(self, tokens: int, seen: int) -> tuple[int, int]:
        first, recent = self.recent.make_room(tokens, self.length)
        return (first, recent) if recent <= seen else (first + recent - seen, seen)

    def starts(self, tokens: int) -> tuple[int, ...]:
        """Return the first index of new tokens in the buffers, in the unpacked ones, and the first one seen there."""
        (start,) = super().starts(tokens)
        first, before = self.recent.make_room(tokens, self.length)
        if self._transform is None or self._transform.device != self.keys.device:
            self._transform = hadamard(self.recent.keys.shape[3]).to(self.keys.device)
        return start, first + before, first

    def stretches(self, starts: Sequence[int], seen: int) -> list[tuple[Tensor, int, int]]:
        recent = [(one, starts[1], RECENT_ROOM) for one in self.recent.tensors]
        return [*super().stretches(starts, seen), *recent]

    def fill(self, keys: Tensor, values: Tensor, first: int) -> None:
        super().fill(keys, values, first)
        self.recent.hold(None, self.length, self.allocate)

    def fill_recent(self, keys: Tensor, values: Tensor) -> None:
        """Hold these unpacked states (1, heads, n, dim) of the newest tokens held."""
        self.recent.hold((keys, values), self.length, self.allocate)

    def newest(self) -> tuple[Tensor, ...]:
        """Return unpacked keys and values of the newest tokens, (1, heads, n, dim) each; empty if there are none."""
        return self.recent.held(self.length)

    def lend(self, most: int) -> tuple[Tensor, Tensor]:
        keys, values = super().lend(most)
        new_keys, new_values = self.recent.held(self.length) or (None, None)
        return PackedRows.of(_stored(keys, new_keys), mixed=True), PackedRows.of(
            _stored(values, new_values), mixed=False
        )

    def move(self, allocate: Allocate) -> None:
        recent = self.recent.copied(allocate) if self.is_initialized and allocate != self.allocate else ()
        super().move(allocate)
        if recent:
            self.recent.keys, self.recent.values = recent

    def _written_at(self, place: TokenPlace, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `seen` tokens (1, H, seen + RECENT_ROOM, D), and behind them the unpacked ones again."""
        keys = self._written(place, key_states, self.keys, self.recent.keys, mixed=True)
        return keys, self._written(place, value_states, self.values, self.recent.values, mixed=False)

    def _written(self, place: TokenPlace, new: Tensor, own: Tensor, recent: Tensor, *, mixed: bool) -> Tensor:
        packed = torch.empty((*new.shape[:3], own.shape[3]), dtype=PACKED, device=own.device)
        pack(new, packed, mixed=mixed, transform=self._transform)
        own.index_copy_(2, place.at[0], packed)
        recent.index_copy_(2, place.at[1], new)
        seen = widen(own[:, :, : place.seen], recent.dtype, mixed=mixed, transform=self._transform)
        return torch.cat((seen, recent), 2)

    def _append(self, first: int, start: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        end = start + key_states.shape[2]
        pack(key_states, self.keys[:, :, start:end], mixed=True)
        pack(value_states, self.values[:, :, start:end], mixed=False)
        recent = self.recent.add(key_states, value_states, self.length, self.allocate)
        seen = slice(first, end)
        return self._handed(self.keys[:, :, seen], recent[0], mixed=True), self._handed(
            self.values[:, :, seen], recent[1], mixed=False
        )

    def _handed(self, packed: Tensor, recent: Tensor, *, mixed: bool) -> Tensor:
        """Return what the model's attention takes: packed rows, or floats (1, H, T, D) if it is not ours."""
        stored = _stored(packed, recent)
        if self.home is None:
            return PackedRows.of(stored, mixed=mixed)
        return stored.floats(recent.dtype, mixed=mixed).to(self.home)


class PackedSlidingLayer(PackedLayer, SlidingLayer):
    """Packed keys and values of a sliding-window layer."""


STATES_ONLY = (PreallocatedLayer, SlidingLayer, PackedLayer, PackedSlidingLayer)
"""Our layers with keys and values and nothing recurrent, to which our library and captured work can write."""


def _stored(packed: Tensor, recent: Tensor | None) -> Stored:
    """Return packed rows (1, H, T, bytes), with as many of the newest ones unpacked (1, H, R, D) as belong to them."""
    return Stored(packed, None if recent is None else recent[:, :, -packed.shape[2] :])


def _packed_like(states: Tensor) -> Tensor:
    """Return a meta tensor with the shape and type of packed states for (1, H, T, D), which may be packed already."""
    if states.dtype is PACKED:
        return states
    return torch.empty((*states.shape[:3], packed_width(states.shape[3])), dtype=PACKED, device="meta")
