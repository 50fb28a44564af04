"""Keys and values of one layer in a preallocated buffer, with rewind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from core.kernels.packed_width import PACKED

# Tokens that a sliding layer keeps beyond its window, so that the last turns can be edited without prefill.
SLIDING_SLACK = 1024

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]
"""(shape, dtype) -> an uninitialised tensor on the device where a layer's states lie."""


def on_host(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate an uninitialised tensor (*shape) in RAM."""
    return torch.empty(tuple(shape), dtype=dtype)


class TokenPlace(NamedTuple):
    """The indices of a pass's n tokens in a layer's buffers, in device memory: `at` (k, n), see `starts`.

    Attention gets the first `seen` tokens of the buffers, with a mask for those that a token must not see.
    """

    at: Tensor
    seen: int

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.at.shape[1]


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a full-attention layer, (1, heads, capacity, dim) each, allocated at the first update.

    `window`: how many tokens attention sees, 0 = all.
    """

    keys: Any  # Tensor once initialised
    values: Any
    window = 0

    def __init__(self, capacity: int, allocate: Allocate = on_host, home: torch.device | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.allocate = allocate
        self.home = home
        self.length = 0
        self.place: TokenPlace | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for keys and values like these (B, H, T, D)."""
        self.dtype = key_states.dtype
        self.keys, self.values = buffers(key_states, value_states, self.capacity, self.allocate)
        self.device = self.keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, heads, n, dim) and return views of all `length + n` tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.place is not None:
            return self._written_at(self.place, key_states, value_states)
        tokens = key_states.shape[-2]
        seen = self._append(*self.make_room(tokens), key_states, value_states)
        self.length += tokens
        return seen

    def _written_at(self, place: TokenPlace, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, place.at[0], key_states)
        self.values.index_copy_(2, place.at[0], value_states)
        return self.keys[:, :, : place.seen], self.values[:, :, : place.seen]

    def make_room(self, tokens: int) -> tuple[int, int]:
        """Return two buffer indices: of the first token that attention sees, and for the first of `tokens` new ones."""
        return 0, self.length

    def recent_room(self, tokens: int, seen: int) -> tuple[int, int]:
        """Return the same for the unpacked buffers of the newest tokens, if any.

        Returns the index among `seen` tokens of the first that is held there, and how many are.
        """
        return 0, 0

    def starts(self, tokens: int) -> tuple[int, ...]:
        """Make room for `tokens` new ones; return the index of the first in the buffers, and what else places them."""
        return (self.make_room(tokens)[1],)

    def stretches(self, starts: Sequence[int], seen: int) -> list[tuple[Tensor, int, int]]:
        """Return each buffer (1, H, capacity, dim) with the first index of new tokens and the end of what is read."""
        return [(self.keys, starts[0], seen), (self.values, starts[0], seen)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the buffers (1, H, capacity, dim) of keys, of values, and of the newest tokens unpacked."""
        return (self.keys, self.values) if self.is_initialized else ()

    @property
    def floats(self) -> torch.dtype | None:
        """Return the dtype of keys and values as computed by the model, if known."""
        return self.dtype if self.is_initialized else None

    def move(self, allocate: Allocate) -> None:
        """Move the states to where `allocate` puts them. Raises NotEnoughMemory; then nothing has moved."""
        if self.is_initialized and allocate != self.allocate:
            there = buffers(self.keys, self.values, self.keys.shape[2], allocate)
            for states, copied in zip((self.keys, self.values), there, strict=True):
                copied[:, :, : self.held] = states[:, :, : self.held]
            self.keys, self.values = there
            self.device = self.keys.device
        self.allocate = allocate

    @property
    def held(self) -> int:
        """Return how many tokens the buffers hold."""
        return self.length

    def fill(self, keys: Tensor, values: Tensor, first: int) -> None:
        """Replace the content by states (1, heads, n, dim); `first`: position in the text of the first."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        held = keys.shape[-2]
        if held > self.keys.shape[-2]:  # a sliding layer after a large chunk of a prompt
            self.keys = self.allocate(_with_length(self.keys, held), self.dtype)
            self.values = self.allocate(_with_length(self.values, held), self.dtype)
        self.keys[:, :, :held] = keys
        self.values[:, :, :held] = values
        self.length = first + held

    def _append(self, first: int, start: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write (1, heads, n, dim) to the buffers from `start` on; return the content from `first` on."""
        end = start + key_states.shape[-2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        keys, values = self.keys[:, :, first:end], self.values[:, :, first:end]
        return (keys, values) if self.home is None else (keys.to(self.home), values.to(self.home))

    def lend(self, most: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the newest tokens held, at most `most`, as our attention takes them.

        (1, heads, n, dim) each, for a model that reads another's.
        """
        seen = slice(max(0, self.held - most), self.held)
        return self.keys[:, :, seen], self.values[:, :, seen]

    def get_seq_length(self) -> int:
        """Return the number of tokens held, or of those passed to attention before tokens at a place."""
        return self.length if self.place is None else self.place.seen - self.place.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a mask covers, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """Drop all tokens."""
        self.length = 0

    def can_keep(self, length: int) -> bool:
        """Return whether the first `length` tokens are all still held."""
        return True

    def keep(self, length: int) -> None:
        """Drop everything after the first `length` tokens."""
        self.length = min(length, self.length)


class SlidingLayer(PreallocatedLayer):
    """The last `window - 1` tokens and up to SLIDING_SLACK older ones; attention sees `window - 1` and the new ones.

    The buffer holds tokens `offset .. length` of the sequence. When it is full, the newest `window - 1` are moved to
    its front, which costs one copy per SLIDING_SLACK tokens.
    """

    is_sliding = True

    def __init__(
        self, window: int, capacity: int, allocate: Allocate = on_host, home: torch.device | None = None
    ) -> None:
        super().__init__(min(capacity, window + SLIDING_SLACK), allocate, home)
        self.window = window
        self.offset = 0

    def make_room(self, tokens: int) -> tuple[int, int]:
        """Return buffer indices as in all layers; attention sees at most `window - 1` tokens and the new ones."""
        self._drop_old(tokens)
        return max(self.length - self.window + 1, self.offset) - self.offset, self.length - self.offset

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a mask covers, at most the window, and the position of the first."""
        first = max(self.length - self.window + 1, 0)
        return self.length - first + query_length, first

    def reset(self) -> None:
        """Drop all tokens."""
        self.length = self.offset = 0

    @property
    def held(self) -> int:
        return self.length - self.offset

    def fill(self, keys: Tensor, values: Tensor, first: int) -> None:
        super().fill(keys, values, first)
        self.offset = first

    def can_keep(self, length: int) -> bool:
        """Return whether the window before token `length` is still held."""
        return length >= self.length or self.offset <= max(length - self.window + 1, 0)

    def _drop_old(self, tokens: int) -> None:
        if self.length - self.offset + tokens <= self.keys.shape[-2]:
            return
        kept = min(self.window - 1, self.length - self.offset)
        start = self.length - self.offset - kept
        old_keys, old_values = self.keys[:, :, start : start + kept], self.values[:, :, start : start + kept]
        if kept + tokens > self.keys.shape[-2]:  # a prompt chunk larger than the slack
            self.keys = self.allocate(_with_length(old_keys, kept + tokens), self.dtype)
            self.values = self.allocate(_with_length(old_values, kept + tokens), self.dtype)
        # clone: source and target overlap when more than half of the buffer is kept.
        self.keys[:, :, :kept] = old_keys.clone()
        self.values[:, :, :kept] = old_values.clone()
        self.offset = self.length - kept


def buffers(keys: Tensor, values: Tensor, length: int, allocate: Allocate) -> tuple[Tensor, Tensor]:
    """Allocate buffers for `length` tokens' keys and values like these (1, H, T, D).

    The two parts of compressed states (MLA), which all heads share and which differ in width, are interleaved by token:
    attention reads them as one row.
    """
    widths = keys.shape[3], values.shape[3]
    if keys.shape[1] > 1 or widths[0] == widths[1] or keys.dtype is PACKED:
        return allocate(_with_length(keys, length), keys.dtype), allocate(_with_length(values, length), values.dtype)
    both = allocate((*keys.shape[:2], length, sum(widths)), keys.dtype)
    return both[..., : widths[0]], both[..., widths[0] :]


def _with_length(states: Tensor, length: int) -> tuple[int, ...]:
    return (*states.shape[:2], length, states.shape[3])
