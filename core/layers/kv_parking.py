"""Copies in RAM of the KV cache's content for other conversations, so that several clients keep their prefixes.

There is a single cache, where the plan has put it. States that another conversation would overwrite are copied out, and
copied back when their conversation continues. Both take moments, where prefill would take seconds or minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.layers.kv_cache import KVCache, common_prefix
from core.layers.kv_states import LayerStates, restore, states_of

# Shorter prefixes are recomputed as fast as they are copied.
WORTHWHILE = 64


@dataclass(frozen=True)
class Parked:
    """The state of one conversation: its ids, and the states of each layer."""

    tokens: tuple[int, ...]
    layers: tuple[LayerStates, ...]
    reply_start: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of all layers' states."""
        return sum(layer.nbytes for layer in self.layers)


class ParkedPrefixes:
    """Parked prefixes of at most `room` bytes; the least recently used are dropped first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._parked: list[Parked] = []

    @property
    def nbytes(self) -> int:
        """Return the bytes held now."""
        return sum(one.nbytes for one in self._parked)

    # The tensors were made in inference mode and may only be written to in it.
    @torch.inference_mode()
    def switch(self, cache: KVCache, ids: Sequence[int], reply_start: int, device: torch.device | str = "cpu") -> int:
        """Make `cache` hold as much of `ids` as is known, and park what it loses; return the new reply start.

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
        # Parked prefixes of this conversation are redundant, unless the cache cannot be cut back to them.
        if cache.can_rewind:
            self._parked = [one for one in self._parked if one.tokens != tokens[: len(one.tokens)]]
        size = sum(layer.nbytes for layer in states)
        while self._parked and self.nbytes + size > self.room:
            del self._parked[0]
        if size <= self.room:
            self._parked.append(Parked(tokens, tuple(layer.copied() for layer in states), reply_start))


def held(cache: KVCache, ids: Sequence[int], reply_start: int) -> int:
    """Return how many of `ids` need no prefill with the cache's current content."""
    known = common_prefix(cache.tokens, ids)
    marks = [length for length in cache.marked if length <= known]
    return max([usable(cache, cache.tokens, ids, reply_start), *marks])


def usable(cache: KVCache, tokens: Sequence[int], ids: Sequence[int], reply_start: int) -> int:
    """Return how many of `ids` need no prefill if `tokens` are held. Recurrent states serve entirely or not at all.

    The ids of a reply may differ although they encode the same text: they are not compared from `reply_start` on.
    """
    known = common_prefix(tokens, ids)
    if not cache.suits(len(tokens), len(ids)):
        return 0
    if cache.can_rewind:
        return known
    return len(tokens) if known == len(tokens) < len(ids) or 0 < reply_start <= known < len(ids) else 0
