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

from core.layers.kv_layers import PreallocatedLayer, TokenPlace
from core.layers.kv_packed import STATES_ONLY
from core.spec import RECENT_ROOM

STEP = 256
"""Attention of captured work reads a multiple of this many tokens, or the whole buffer."""


@dataclass(frozen=True)
class Kind:
    """Layers of one window (0 = none): where their new tokens begin (`starts`), and how many tokens are read."""

    layers: Sequence[PreallocatedLayer]
    starts: tuple[int, ...]
    seen: int


class Stretch:
    """What a pass over `rows` new tokens uses of some layers of a cache, all of them plain and on one device.

    `places` (1 + k, rows), on the host: the tokens' positions in the text, then the indices that place them in the
    buffers of each kind of layers. `seen`: tokens that attention reads, by kind. `buffers`: keys and values, (1, H,
    tokens, D).
    """

    def __init__(self, kinds: Mapping[int, Kind], rows: int, position: int) -> None:
        self.rows = rows
        self.seen = tuple(kind.seen for kind in kinds.values())
        self.buffers = [tensor for kind in kinds.values() for one in kind.layers for tensor in one.tensors]
        starts = torch.tensor([position, *(start for kind in kinds.values() for start in kind.starts)])
        self.places = starts.unsqueeze(1) + torch.arange(rows)
        self._kinds = kinds

    @property
    def ends_here(self) -> bool:
        """Whether a layer's new tokens are the last of its stretch, whose number then equals that of the tokens."""
        return any(kind.starts[0] + self.rows == kind.seen for kind in self._kinds.values())

    @contextmanager
    def written_at(self, places: Tensor) -> Iterator[dict[int, Tensor]]:
        """Make updates write at `places`, a copy of those here in device memory, without counting tokens.

        Yields the mask (1, 1, rows, seen) of layers by window.
        """
        masks, rest = {}, places[1:]
        for window, kind in self._kinds.items():
            at, rest = rest[: len(kind.starts)], rest[len(kind.starts) :]
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
        own = [tensor[:, :, start : start + self.rows] for tensor, start, _ in self._stretches]
        before = [part.clone() for part in own]
        try:
            yield
        finally:
            for part, old in zip(own, before, strict=True):
                part.copy_(old)

    def blank(self) -> None:
        """Zero the buffers behind the new tokens: values behind a mask must not be NaN."""
        for tensor, start, end in self._stretches:
            tensor[:, :, start + self.rows : end] = 0

    def advance(self) -> None:
        """Count the new tokens in each layer, after a replay has written them."""
        for layer in self._layers:
            layer.length += self.rows

    @property
    def _layers(self) -> list[PreallocatedLayer]:
        return [layer for kind in self._kinds.values() for layer in kind.layers]

    @property
    def _stretches(self) -> Iterator[tuple[Tensor, int, int]]:
        for kind in self._kinds.values():
            for layer in kind.layers:
                yield from layer.stretches(kind.starts, kind.seen)


def stretch_of(layers: Sequence[Any], rows: int, position: int, device: torch.device) -> Stretch | None:
    """Return the stretch for `rows` tokens from `position` on; None if a layer is of another kind, empty, full or
    elsewhere than on `device`."""
    by_window: dict[int, list[PreallocatedLayer]] = {}
    for layer in layers:
        if type(layer) not in STATES_ONLY or not layer.is_initialized or layer.keys.device != device:
            return None
        by_window.setdefault(layer.window, []).append(layer)
    kinds = {window: _kind(alike, rows) for window, alike in by_window.items()}
    found = {window: kind for window, kind in kinds.items() if kind is not None}
    return Stretch(found, rows, position) if found and len(found) == len(kinds) else None


def _kind(layers: Sequence[PreallocatedLayer], rows: int) -> Kind | None:
    found, sizes = {one.starts(rows) for one in layers}, {one.keys.shape[2] for one in layers}
    starts, size = found.pop(), sizes.pop()
    if found or sizes or starts[0] + rows > size:
        return None
    return Kind(layers, starts, min(-(-(starts[0] + rows) // STEP) * STEP, size))


def _mask(at: Tensor, seen: int, window: int) -> Tensor:
    """Return (1, 1, rows, T), True for the tokens that each one at `at` (k, rows) sees: up to itself, in its window.

    T is `seen`; with packed states the newest are read from the unpacked ones, which come behind all others.
    """
    index, last = torch.arange(seen, device=at.device), at[0].unsqueeze(1)
    if at.shape[0] == 1:
        mask = _in_sight(index, last, window)
    else:
        first, ahead = at[2, 0], at[0, 0] - at[1, 0]
        recent = torch.arange(RECENT_ROOM, device=at.device)
        older = _in_sight(index, last, window) & (index < first + ahead)
        mask = torch.cat((older, _in_sight(recent + ahead, last, window) & (recent >= first)), 1)
    return mask.view(1, 1, *mask.shape)


def _in_sight(index: Tensor, last: Tensor, window: int) -> Tensor:
    """Return (rows, T): whether each index (T,) is at most the row's own (rows, 1), and within its window."""
    return (index <= last) & (index > last - window) if window else index <= last
