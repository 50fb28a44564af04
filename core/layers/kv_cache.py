"""The KV cache: keys and values of all tokens read so far, preallocated, with rewind for edited conversations.

transformers determines each layer's kind (`DynamicCache(config=...)`). Full and sliding attention layers are replaced
by ones that write to a preallocated buffer instead of concatenating at every token. Recurrent states (linear attention,
convolutions) cannot be cut back; they are restored from marked snapshots.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from core.layers.kv_heads import DividedStates, less_on_device
from core.layers.kv_layers import Allocate, PreallocatedLayer, SlidingLayer, on_host
from core.layers.kv_packed import PackedLayer, PackedSlidingLayer
from core.layers.recurrent_cache import RecurrentAndAttentionLayer, RecurrentLayer, Snapshots
from core.layers.rotary import longest_short
from core.spec import KvFormat

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""The forward arguments for the cache: since transformers 5.24, before it, and of Mamba before it."""
# Recurrent families that carry their state across passes of several tokens, as the tests confirm. The others (Mamba,
# Jamba) would silently start anew, so that their entire prompt is read in one pass.
CONTINUING = frozenset({
    "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "lfm2", "lfm2_moe", "mamba2", "nemotron_h",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
})  # fmt: skip


class KVCache(Cache):  # type: ignore[misc]
    """The cache of one conversation for one model; `tokens` are the ids whose states it holds."""

    def __init__(
        self,
        config: Any,
        capacity: int,
        allocate: Mapping[int, Allocate] = MappingProxyType({}),
        home: torch.device | None = None,
        format: KvFormat = "bf16",
    ) -> None:
        """`capacity`: the context in tokens; `allocate`: allocators of layers whose states do not lie in RAM.

        `home`: the device on which a model with its own attention wants all states (ours runs where they lie).
        `format`: as computed by the model, or packed in 8 bits.
        `can_rewind`: any tail can be cut off. `can_return`: at least earlier marks can be restored.
        """
        layers = DynamicCache(config=config).layers
        maker = _Maker(capacity, home, format == "int8")
        super().__init__(layers=[maker.ours(one, allocate.get(i, on_host)) for i, one in enumerate(layers)])
        self.capacity = capacity
        self.tokens: list[int] = []
        self.can_rewind = all(_is_sliceable(layer) or is_stateless(layer) for layer in self.layers)
        family = config.get_text_config(decoder=True).model_type
        self.reads_in_parts = self.can_rewind or family in CONTINUING
        known = all(isinstance(one, PreallocatedLayer | RecurrentLayer) or is_stateless(one) for one in self.layers)
        self.can_return = self.reads_in_parts and known
        self._snapshots = Snapshots()
        self._longest_short = longest_short(config)

    @property
    def nbytes(self) -> int:
        """Return the bytes currently held by all layers' buffers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in _tensors(layer))

    @property
    def away(self) -> frozenset[int]:
        """Return the layers whose states do not lie in RAM."""
        ours = ((number, one) for number, one in enumerate(self.layers) if isinstance(one, PreallocatedLayer))
        return frozenset(number for number, one in ours if one.allocate is not on_host)

    def move(self, allocate: Mapping[int, Allocate], home: torch.device | None = None) -> None:
        """Move the layers' states to where `allocate` puts them, without an entry to RAM; nothing is recomputed.

        Recurrent states stay where they are. Raises NotEnoughMemory; then some layers have moved, and all are valid.
        """
        for number, layer in enumerate(self.layers):
            if isinstance(layer, PreallocatedLayer):
                layer.move(allocate.get(number, on_host))
                layer.home = home

    def retreat(self, allocate: Mapping[int, Allocate], home: torch.device | None = None) -> None:
        """Move what `allocate` leaves less of on a device, and nothing to a device. Raises as `move` does."""
        held = {number: self.layers[number].allocate for number in self.away & allocate.keys()}
        self.move({number: less_on_device(now, allocate[number]) for number, now in held.items()}, home)

    def mark(self, *, briefly: bool = False) -> None:
        """Mark the current length, so that it can be restored; `briefly`: only until the next brief mark.

        Lasting marks are kept until newer ones replace them. No-op if any tail can be cut off, or if nothing can be
        restored.
        """
        if self.tokens and self.can_return and not self.can_rewind:
            self._snapshots.take(len(self.tokens), self._recurrent, briefly=briefly)

    @property
    def marked(self) -> tuple[int, ...]:
        """Return the lengths that can be restored because they were marked."""
        return self._snapshots.lengths

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep the longest usable prefix of `ids`, leaving at least one token to compute; return its length."""
        self.suit(len(ids))
        kept = self.rewind(min(common_prefix(self.tokens, ids), len(ids) - 1))
        if self.reads_in_parts or len(ids) - kept == 1:
            return kept
        self.reset()
        return 0

    def suits(self, held: int, length: int) -> bool:
        """Return whether states of `held` tokens belong to a text of `length` tokens: with two sets of frequencies
        (longrope), those of a short text are no part of a long one."""
        return (held > self._longest_short) == (length > self._longest_short)

    def room_after(self, length: int) -> int:
        """Return how many tokens can be guessed behind a text of `length` tokens: none across the end of short ones."""
        end = self.capacity if len(self.tokens) > self._longest_short else min(self._longest_short, self.capacity)
        return max(0, end - length)

    def suit(self, length: int) -> None:
        """Drop all tokens if their states do not belong to a text of `length` tokens."""
        if not self.suits(len(self.tokens), length):
            self.reset()

    def rewind(self, length: int) -> int:
        """Rewind to at most `length` tokens, keeping as many as possible; return the length kept."""
        return length if length == len(self.tokens) > 0 else self.restore(length)

    def restore(self, length: int) -> int:
        """Rewind, also after an interrupted pass in which some layers hold more than others; return the length kept."""
        kept = length if self.can_rewind else self._snapshots.newest(length)
        if (
            kept <= 0
            or not self.suits(len(self.tokens), kept)
            or not all(_can_keep(layer, kept) for layer in self.layers)
        ):
            self.reset()
            return 0
        for layer in self.layers:
            if isinstance(layer, PreallocatedLayer):
                layer.keep(kept)
        if not self.can_rewind:
            self._snapshots.put_back(kept, self._recurrent)
        del self.tokens[kept:]
        return kept

    def trim(self, length: int) -> None:
        """Rewind to at most `length` tokens if that loses nothing else."""
        if len(self.tokens) > length > 0 and self.can_rewind:
            self.rewind(length)

    @property
    def _recurrent(self) -> list[RecurrentLayer]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    # Recurrent states were made in inference mode and are zeroed in place, which is only allowed in it.
    @torch.inference_mode()
    def reset(self) -> None:
        """Drop all tokens."""
        super().reset()
        self.tokens.clear()
        self._snapshots.forget()


def cache_argument(module: Any) -> str:
    """Return the name of the cache argument of a module's forward; empty if there is none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), "")


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of equal leading ids."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


@dataclass(frozen=True)
class _Maker:
    """Makes the layers of one cache."""

    capacity: int
    home: torch.device | None
    packs: bool

    def ours(self, layer: Any, allocate: Allocate) -> Any:
        """Return our replacement for a transformers layer of a known kind; any other layer is returned as is."""
        if self.packs and is_packable(layer):
            return self._packed(layer, allocate)
        if type(layer) is DynamicLayer:
            return PreallocatedLayer(self.capacity, allocate, self.home)
        if type(layer) is DynamicSlidingWindowLayer:
            return SlidingLayer(layer.sliding_window, self.capacity, allocate, self.home)
        if type(layer) is LinearAttentionLayer:
            return RecurrentLayer(layer.number_of_states)
        if type(layer) is LinearAttentionAndFullAttentionLayer:
            return RecurrentAndAttentionLayer(layer.number_of_states, self.capacity, allocate, self.home)
        return layer

    def _packed(self, layer: Any, allocate: Allocate) -> PackedLayer:
        if type(layer) is DynamicLayer:
            return PackedLayer(self.capacity, allocate, self.home)
        return PackedSlidingLayer(layer.sliding_window, self.capacity, allocate, self.home)


KNOWN_KINDS = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
"""The layer kinds that most models use and that we replace by our own."""


def is_usual(config: Any) -> bool:
    """Return whether a model caches only keys, values and recurrent states."""
    return all(type(layer) in KNOWN_KINDS or is_stateless(layer) for layer in DynamicCache(config=config).layers)


def is_packable(layer: Any) -> bool:
    """Return whether a transformers layer may be kept in 8 bits: only keys and values, nothing recurrent."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _can_keep(layer: Any, length: int) -> bool:
    return layer.can_keep(length) if isinstance(layer, PreallocatedLayer) else True


def _is_sliceable(layer: Any) -> bool:
    return isinstance(layer, PreallocatedLayer) and not isinstance(layer, RecurrentLayer)


def is_stateless(layer: Any) -> bool:
    """Return whether a layer is only a placeholder in transformers' numbering."""
    return type(layer).__name__ == "DummyLayer"


def _tensors(layer: Any) -> list[Tensor | DividedStates]:
    values = list(layer.tensors) if isinstance(layer, PreallocatedLayer) else []
    for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
        values.extend(states.values())
    return [value for value in values if isinstance(value, torch.Tensor | DividedStates)]
