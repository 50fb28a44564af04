"""Copies in RAM of what the KV cache held for other conversations, so that several clients keep their prefixes.

The cache itself stays one, where the plan has put it. What another conversation would overwrite is copied out, and
copied back when that conversation goes on: both take moments where reading the prompt again takes seconds or minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.layers.kv_cache import KVCache, common_prefix
from core.layers.kv_layers import PreallocatedLayer, SlidingLayer

# A prefix of fewer tokens is read again as fast as it is looked after.
WORTHWHILE = 64


@dataclass(frozen=True)
class Parked:
    """The state of one conversation: its ids, and each layer's keys, values and first token held."""

    tokens: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor, int], ...]
    reply_start: int

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values, _ in self.layers)


class ParkedPrefixes:
    """Parked prefixes of at most `room` bytes; the least recently used are given up first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._parked: list[Parked] = []

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(one.nbytes for one in self._parked)

    # Its tensors were made in inference mode and may not be written to outside of it.
    @torch.inference_mode()
    def switch(self, cache: KVCache, ids: Sequence[int], reply_start: int) -> int:
        """Make `cache` hold as much of `ids` as is known here, and keep what it loses by that; the new reply start."""
        if not cache.can_rewind or not self.room:
            return reply_start
        known = common_prefix(cache.tokens, ids)
        best = max(self._parked, key=lambda one: common_prefix(one.tokens, ids), default=None)
        if len(cache.tokens) - known >= WORTHWHILE:
            self._park(cache, reply_start)
        if best is None or common_prefix(best.tokens, ids) - known < WORTHWHILE:
            return reply_start
        self._bring_back(cache, best)
        return best.reply_start

    def _park(self, cache: KVCache, reply_start: int) -> None:
        tokens = tuple(cache.tokens)
        # What only repeats the beginning of this one is of no use beside it.
        self._parked = [one for one in self._parked if one.tokens != tokens[: len(one.tokens)]]
        size = sum(_held_bytes(layer) for layer in cache.layers)
        while self._parked and self.nbytes + size > self.room:
            del self._parked[0]
        if size <= self.room:
            self._parked.append(Parked(tokens, tuple(map(_copied, _ours(cache))), reply_start))

    def _bring_back(self, cache: KVCache, parked: Parked) -> None:
        self._parked = [one for one in self._parked if one is not parked]
        for layer, (keys, values, first) in zip(_ours(cache), parked.layers, strict=True):
            layer.fill(keys, values, first)
        cache.tokens[:] = parked.tokens


def _ours(cache: KVCache) -> list[PreallocatedLayer]:
    return [layer for layer in cache.layers if isinstance(layer, PreallocatedLayer)]


def _copied(layer: PreallocatedLayer) -> tuple[Tensor, Tensor, int]:
    keys, values = layer.keys[:, :, : layer.held], layer.values[:, :, : layer.held]
    first = layer.offset if isinstance(layer, SlidingLayer) else 0
    return keys.to("cpu", copy=True), values.to("cpu", copy=True), first


def _held_bytes(layer: object) -> int:
    if not isinstance(layer, PreallocatedLayer) or not layer.is_initialized:
        return 0
    return int((layer.keys.nbytes + layer.values.nbytes) / max(layer.keys.shape[-2], 1) * layer.held)
