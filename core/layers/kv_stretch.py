"""The part of a KV cache that captured work reads and writes, at places that it reads from device memory.

A graph knows addresses only, so nothing that changes between passes may be a number in it. Keys and values are written
at indices that lie in device memory, and attention reads a fixed stretch of the buffers under a mask computed from
these indices. Stretches grow in steps of STEP tokens; work is captured anew for each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.layers.kv_layers import PreallocatedLayer, SlidingLayer, TokenPlace

STEP = 256
"""Attention of captured work reads a multiple of this many tokens, or the whole buffer."""
PLACED = (PreallocatedLayer, SlidingLayer)
"""The kinds of layers that can write at a place in device memory."""


@dataclass(frozen=True)
class Kind:
    """Layers of one window (0 = none): their next tokens' first index in the buffers, and how many tokens are read."""

    layers: Sequence[PreallocatedLayer]
    start: int
    seen: int


class Stretch:
    """What a pass over `rows` new tokens uses of some layers of a cache, all of them plain and on one device.

    `places` (1 + kinds, rows), on the host: the tokens' positions in the text, then their indices in the buffers of
    each kind of layers. `seen`: tokens that attention reads, by kind. `buffers`: keys and values, (1, H, tokens, D).
    """

    def __init__(self, kinds: Mapping[int, Kind], rows: int, position: int) -> None:
        self.rows = rows
        self.seen = tuple(kind.seen for kind in kinds.values())
        self.buffers = [tensor for kind in kinds.values() for one in kind.layers for tensor in one.tensors]
        starts = torch.tensor([position, *(kind.start for kind in kinds.values())])
        self.places = starts.unsqueeze(1) + torch.arange(rows)
        self._kinds = kinds

    @property
    def ends_here(self) -> bool:
        """Whether a layer's new tokens are the last of its stretch, whose number then equals that of the tokens."""
        return any(kind.start + self.rows == kind.seen for kind in self._kinds.values())

    @contextmanager
    def written_at(self, places: Tensor) -> Iterator[dict[int, Tensor]]:
        """Make updates write at `places`, a copy of those here in device memory, without counting tokens.

        Yields the mask (1, 1, rows, seen) of layers by window.
        """
        masks = {}
        for (window, kind), at in zip(self._kinds.items(), places[1:], strict=True):
            masks[window] = _mask(at, kind.seen, window)
            for layer in kind.layers:
                layer.place = TokenPlace(at, kind.seen)
        try:
            yield masks
        finally:
            for layer in self._layers:
                layer.place = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the new tokens' keys and values at the end, whatever was written there."""
        own = [part for kind in self._kinds.values() for part in self._parts(kind, kind.start, kind.start + self.rows)]
        before = [part.clone() for part in own]
        try:
            yield
        finally:
            for part, old in zip(own, before, strict=True):
                part.copy_(old)

    def blank(self) -> None:
        """Zero the buffers behind the new tokens: values behind a mask must not be NaN."""
        for kind in self._kinds.values():
            for part in self._parts(kind, kind.start + self.rows, kind.seen):
                part.zero_()

    def advance(self) -> None:
        """Count the new tokens in each layer, after a replay has written them."""
        for layer in self._layers:
            layer.length += self.rows

    @property
    def _layers(self) -> list[PreallocatedLayer]:
        return [layer for kind in self._kinds.values() for layer in kind.layers]

    def _parts(self, kind: Kind, begin: int, end: int) -> list[Tensor]:
        return [tensor[:, :, begin:end] for layer in kind.layers for tensor in layer.tensors]


def stretch_of(layers: Sequence[Any], rows: int, position: int, device: torch.device) -> Stretch | None:
    """Return the stretch for `rows` tokens from `position` on; None if a layer is of another kind, empty, full or
    elsewhere than on `device`."""
    by_window: dict[int, list[PreallocatedLayer]] = {}
    for layer in layers:
        if type(layer) not in PLACED or not layer.is_initialized or layer.keys.device != device:
            return None
        by_window.setdefault(layer.window, []).append(layer)
    kinds = {window: _kind(alike, rows) for window, alike in by_window.items()}
    found = {window: kind for window, kind in kinds.items() if kind is not None}
    return Stretch(found, rows, position) if found and len(found) == len(kinds) else None


def _kind(layers: Sequence[PreallocatedLayer], rows: int) -> Kind | None:
    starts, sizes = {one.make_room(rows)[1] for one in layers}, {one.keys.shape[2] for one in layers}
    start, size = starts.pop(), sizes.pop()
    if starts or sizes or start + rows > size:
        return None
    return Kind(layers, start, min(-(-(start + rows) // STEP) * STEP, size))


def _mask(at: Tensor, seen: int, window: int) -> Tensor:
    """Return (1, 1, rows, seen), True for the tokens up to each index in `at` (rows,) and within its window."""
    index, last = torch.arange(seen, device=at.device), at.unsqueeze(1)
    mask = (index <= last) & (index > last - window) if window else index <= last
    return mask.view(1, 1, *mask.shape)
