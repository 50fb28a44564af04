"""Copies in RAM of what the KV cache held for other conversations, so that several clients keep their prefixes.

The cache itself stays one, where the plan has put it. What another conversation would overwrite is copied out, and
copied back when that conversation goes on: both take moments where reading the prompt again takes seconds or minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.layers.kv_cache import KVCache, common_prefix
from core.layers.kv_states import LayerStates, restore, states_of

# A prefix of fewer tokens is read again as fast as it is looked after.
WORTHWHILE = 64


@dataclass(frozen=True)
class Parked:
    """The state of one conversation: its ids, and what each layer held of them."""

    tokens: tuple[int, ...]
    layers: tuple[LayerStates, ...]
    reply_start: int

    @property
    def nbytes(self) -> int:
        """Bytes of what all layers held."""
        return sum(layer.nbytes for layer in self.layers)


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
    def switch(self, cache: KVCache, ids: Sequence[int], reply_start: int, device: torch.device | str = "cpu") -> int:
        """Make `cache` hold as much of `ids` as is known here, and keep what it loses by that; the new reply start.

        `device`: where recurrent states lie.
        """
        if not self.room or not cache.can_return:
            return reply_start
        known = held(cache, ids, reply_start)
        best = max(self._parked, key=lambda one: usable(cache, one.tokens, ids, one.reply_start), default=None)
        if len(cache.tokens) - known >= WORTHWHILE:
            self._park(cache, reply_start)
        if best is None or usable(cache, best.tokens, ids, best.reply_start) - known < WORTHWHILE:
            return reply_start
        self._parked = [one for one in self._parked if one is not best]
        restore(cache, best.tokens, best.layers, device)
        return best.reply_start

    def _park(self, cache: KVCache, reply_start: int) -> None:
        tokens, states = tuple(cache.tokens), states_of(cache)
        # What only repeats the beginning of this one is of no use beside it, unless it cannot be cut back to that.
        if cache.can_rewind:
            self._parked = [one for one in self._parked if one.tokens != tokens[: len(one.tokens)]]
        size = sum(layer.nbytes for layer in states)
        while self._parked and self.nbytes + size > self.room:
            del self._parked[0]
        if size <= self.room:
            self._parked.append(Parked(tokens, tuple(layer.copied() for layer in states), reply_start))


def held(cache: KVCache, ids: Sequence[int], reply_start: int) -> int:
    """How many of `ids` need not be read as the cache is now."""
    known = common_prefix(cache.tokens, ids)
    marks = [length for length in cache.marked if length <= known]
    return max([usable(cache, cache.tokens, ids, reply_start), *marks])


def usable(cache: KVCache, tokens: Sequence[int], ids: Sequence[int], reply_start: int) -> int:
    """How many of `ids` need not be read where `tokens` are known: recurrent states serve whole or not at all.

    A reply's own ids may stand for the same text as other ids do: from `reply_start` on they are not compared.
    """
    known = common_prefix(tokens, ids)
    if cache.can_rewind:
        return known
    return len(tokens) if known == len(tokens) < len(ids) or 0 < reply_start <= known < len(ids) else 0
