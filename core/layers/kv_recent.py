"""The newest keys and values of a layer as the model computed them, beside the packed ones of all tokens.

Heads look sharply at the newest tokens, where packed keys lose most; at older ones 8 bits lose next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.layers.kv_layers import Allocate
from core.spec import RECENT, RECENT_ROOM

MOST_IN_PLACE = RECENT_ROOM - RECENT + 1
"""Tokens that are added at once without making new tensors."""


class RecentStates:
    """Keys and values (1, H, RECENT_ROOM, D) of the tokens from place `start` in the text on.

    A pass sees those of its own tokens and of RECENT - 1 before them. They are not there where more was cut off than is
    held, or where a saved conversation had none: packed ones are seen instead.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        self.start = 0
        self.dtype: torch.dtype | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Keys and values (1, H, RECENT_ROOM, D), if they have memory yet."""
        return () if self.dtype is None else (self.keys, self.values)

    def make_room(self, tokens: int, length: int) -> tuple[int, int]:
        """Let at most MOST_IN_PLACE tokens follow `length` others; the place of the first that is seen, and how many
        are seen before them."""
        held = length - self.start
        if held < 0 or held + tokens > RECENT_ROOM:
            held = self._moved_up(length)
        return (held - RECENT + 1, RECENT - 1) if held >= RECENT else (0, held)

    def add(self, keys: Tensor, values: Tensor, length: int, allocate: Allocate) -> tuple[Tensor, Tensor]:
        """Hold states (1, H, T, D) of tokens that follow `length` others; what is seen of the newest, (1, H, R, D)."""
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
        """Keys and values of the newest of `length` tokens, as many as there are, (1, H, R, D)."""
        count = length - self.start
        return tuple(one[:, :, :count] for one in self.tensors) if count > 0 else ()

    def hold(self, states: tuple[Tensor, Tensor] | None, length: int, allocate: Allocate) -> None:
        """Hold these of the newest of `length` tokens (1, H, R, D) instead of all others; None = nothing."""
        self.start = length
        if states is None:
            return
        if self.dtype is not states[0].dtype:
            self._open(*states, allocate)
        self._put(states, length)

    def copied(self, allocate: Allocate) -> tuple[Tensor, ...]:
        """Keys and values (1, H, RECENT_ROOM, D) where `allocate` puts them, if they have memory yet. Raises
        NotEnoughMemory."""
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
        """Hold no more of `length` tokens than are seen; how many."""
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
