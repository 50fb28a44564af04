"""The newest keys and values of a layer, unpacked, beside the packed ones of all tokens.

Attention is sharpest at the newest tokens, where packing keys costs most; at older tokens 8 bits cost next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.layers.kv_layers import Allocate
from core.spec import RECENT, RECENT_ROOM

MOST_IN_PLACE = RECENT_ROOM - RECENT + 1
"""Largest number of tokens to add at once without allocating new tensors."""


class RecentStates:
    """Unpacked keys and values (1, H, RECENT_ROOM, D) of the tokens from position `start` on.

    A pass sees those of its own tokens and of the RECENT - 1 before them. Fewer are held after a rewind behind `start`,
    or if a saved conversation had none; then packed ones are used instead.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        self.start = 0
        self.dtype: torch.dtype | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return keys and values (1, H, RECENT_ROOM, D), if allocated."""
        return () if self.dtype is None else (self.keys, self.values)

    def make_room(self, tokens: int, length: int) -> tuple[int, int]:
        """Make room for at most MOST_IN_PLACE tokens after `length` others.

        Returns the index of the first token to be seen, and how many are seen before the new ones.
        """
        held = length - self.start
        if held < 0 or held + tokens > RECENT_ROOM:
            held = self._moved_up(length)
        return (held - RECENT + 1, RECENT - 1) if held >= RECENT else (0, held)

    def add(self, keys: Tensor, values: Tensor, length: int, allocate: Allocate) -> tuple[Tensor, Tensor]:
        """Add states (1, H, T, D) of tokens after `length` others; return the newest ones to be seen, (1, H, R, D)."""
        tokens = keys.shape[2]
        if self.dtype is not keys.dtype:
            self._open(keys, values, allocate)
            self.start = length
        if tokens > MOST_IN_PLACE:
            return self._add_many(keys, values, length)
        first, seen = self.make_room(tokens, length)
        end = first + seen + tokens
        for own, new in zip(self.tensors, (keys, values), strict=True):
            own[:, :, first + seen : end] = new
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def held(self, length: int) -> tuple[Tensor, ...]:
        """Return keys and values of the newest of `length` tokens, as many as are held, (1, H, R, D)."""
        count = length - self.start
        return tuple(one[:, :, :count] for one in self.tensors) if count > 0 else ()

    def hold(self, states: tuple[Tensor, Tensor] | None, length: int, allocate: Allocate) -> None:
        """Replace all states by these of the newest of `length` tokens (1, H, R, D); None = none."""
        self.start = length
        if states is None:
            return
        if self.dtype is not states[0].dtype:
            self._open(*states, allocate)
        self._put(states, length)

    def copied(self, allocate: Allocate) -> tuple[Tensor, ...]:
        """Return copies of keys and values (1, H, RECENT_ROOM, D) made with `allocate`, if there are any.

        Raises NotEnoughMemory.
        """
        return tuple(allocate(one.shape, one.dtype).copy_(one) for one in self.tensors)

    def _open(self, keys: Tensor, values: Tensor, allocate: Allocate) -> None:
        self.keys, self.values = (
            allocate((*one.shape[:2], RECENT_ROOM, one.shape[3]), one.dtype) for one in (keys, values)
        )
        self.dtype = keys.dtype

    def _add_many(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        first, seen = self.make_room(0, length)
        older = (one[:, :, first : first + seen] for one in self.tensors)
        both = [torch.cat((one, new.to(one.device)), 2) for one, new in zip(older, (keys, values), strict=True)]
        self._put((both[0], both[1]), length + keys.shape[2])
        return both[0], both[1]

    def _moved_up(self, length: int) -> int:
        """Keep only as many of `length` tokens as can still be seen, moved to the front; return their number."""
        held = max(0, length - self.start)
        kept = min(held, RECENT - 1)
        for one in self.tensors:
            one[:, :, :kept] = one[:, :, held - kept : held].clone()
        self.start = length - kept
        return kept

    def _put(self, states: tuple[Tensor, Tensor], length: int) -> None:
        count = min(states[0].shape[2], RECENT_ROOM)
        for own, new in zip(self.tensors, states, strict=True):
            own[:, :, :count] = new[:, :, new.shape[2] - count :]
        self.start = length - count
