"""The KV cache: keys and values of every token read so far, preallocated, cut back when a conversation is edited.

transformers decides which kind of layer a model needs (`DynamicCache(config=...)`); full and sliding attention are
replaced by layers that write into one preallocated buffer instead of concatenating at every token. Recurrent states
(linear attention, convolutions) cannot be cut back: they are put back to what they were where that was marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from core.layers.kv_layers import Allocate, PreallocatedLayer, SlidingLayer, TokenPlace, on_host
from core.layers.kv_packed import PackedLayer, PackedSlidingLayer
from core.layers.recurrent_cache import RecurrentAndAttentionLayer, RecurrentLayer, Snapshots
from core.spec import KvFormat

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What the forward of a model calls its cache: since transformers 5.24, before it, and Mamba's before it."""
# Recurrent families that carry their state on when several tokens follow at once, as the tests have seen. The others
# (Mamba, Jamba) would begin anew without saying so: their whole prompt is read in one pass.
CONTINUING = frozenset({
    "bamba", "falcon_h1", "granitemoehybrid", "lfm2", "lfm2_moe", "mamba2", "nemotron_h", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_next",
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
        """`capacity`: the context in tokens; `allocate`: how, for layers whose states are not to lie in RAM; `home`:
        where a model wants all states handed over whose attention is its own (ours goes to where they lie); `format`:
        as the model computes them, or packed in 8 bits.

        `can_rewind`: any tail can be cut off; `can_return`: at least so that what was marked before it is held again.
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

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers' buffers now."""
        return sum(tensor.nbytes for layer in self.layers for tensor in _tensors(layer))

    @property
    def away(self) -> frozenset[int]:
        """The layers whose states are not to lie in RAM."""
        ours = ((number, one) for number, one in enumerate(self.layers) if isinstance(one, PreallocatedLayer))
        return frozenset(number for number, one in ours if one.allocate is not on_host)

    def move(self, allocate: Mapping[int, Allocate], home: torch.device | None = None) -> None:
        """Let the layers lie where `allocate` has them, in RAM where it has none; nothing has to be read again.
        Recurrent states stay where they are. Raises NotEnoughMemory: then some have moved and are sound."""
        for number, layer in enumerate(self.layers):
            if isinstance(layer, PreallocatedLayer):
                layer.move(allocate.get(number, on_host))
                layer.home = home

    def buffers_on(self, device: torch.device) -> list[Tensor]:
        """Keys and values (1, H, capacity, dim) of all layers if all are plain and on this device; otherwise none."""
        plain = all(type(one) is PreallocatedLayer and one.is_initialized for one in self.layers)
        held = [tensor for one in self.layers for tensor in one.tensors] if plain else []
        return held if all(tensor.device == device for tensor in held) else []

    def blank(self, length: int) -> None:
        """Zero the buffers behind the tokens held, up to this length: masked values must not be NaN."""
        for tensor in (one for layer in self.layers for one in layer.tensors):
            tensor[:, :, len(self.tokens) : length] = 0

    @contextmanager
    def written_at(self, place: TokenPlace) -> Iterator[None]:
        """Context: updates write one token at a position in device memory, uncounted (see `advance`). Requires
        `buffers_on` that device."""
        for layer in self.layers:
            layer.place = place
        try:
            yield
        finally:
            for layer in self.layers:
                layer.place = None

    def advance(self) -> None:
        """Count one more token in each layer, written by a replay."""
        for layer in self.layers:
            layer.length += 1

    def mark(self, *, briefly: bool = False) -> None:
        """Be able to return to the tokens held now; `briefly`: until the next such mark, where other marks stay until
        there are newer ones. No-op where any tail can be cut off, and where nothing can be done."""
        if self.tokens and self.can_return and not self.can_rewind:
            self._snapshots.take(len(self.tokens), self._recurrent, briefly=briefly)

    @property
    def marked(self) -> tuple[int, ...]:
        """The numbers of tokens that can be returned to because they were marked."""
        return self._snapshots.lengths

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep the longest usable prefix of `ids`, always leaving at least one token to compute; its length."""
        kept = self.rewind(min(common_prefix(self.tokens, ids), len(ids) - 1))
        if self.reads_in_parts or len(ids) - kept == 1:
            return kept
        self.reset()
        return 0

    def rewind(self, length: int) -> int:
        """Cut back to at most `length` tokens, as few less as can be; the length kept."""
        return length if length == len(self.tokens) > 0 else self.restore(length)

    def restore(self, length: int) -> int:
        """Rewind, also after a pass broken off half-way, when some layers hold more than others; the length kept."""
        kept = length if self.can_rewind else self._snapshots.newest(length)
        if kept <= 0 or not all(_can_keep(layer, kept) for layer in self.layers):
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
        """Cut back to at most `length` tokens where that loses nothing else."""
        if len(self.tokens) > length > 0 and self.can_rewind:
            self.rewind(length)

    @property
    def _recurrent(self) -> list[RecurrentLayer]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    # Recurrent states were made in inference mode and are zeroed in place, which is refused outside of it.
    @torch.inference_mode()
    def reset(self) -> None:
        """Hold nothing."""
        super().reset()
        self.tokens.clear()
        self._snapshots.forget()


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading ids that are the same."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


@dataclass(frozen=True)
class _Maker:
    """What layers of one cache have in common."""

    capacity: int
    home: torch.device | None
    packs: bool

    def ours(self, layer: Any, allocate: Allocate) -> Any:
        """Our layer in place of transformers' own where its kind is known exactly."""
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
"""What transformers remembers by in most models, and we by layers of our own."""


def is_usual(config: Any) -> bool:
    """Whether a model remembers keys, values and recurrent states and nothing besides."""
    return all(type(layer) in KNOWN_KINDS or is_stateless(layer) for layer in DynamicCache(config=config).layers)


def is_packable(layer: Any) -> bool:
    """Whether a layer of transformers' cache may be kept in 8 bits: keys and values alone, nothing recurrent."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _can_keep(layer: Any, length: int) -> bool:
    return layer.can_keep(length) if isinstance(layer, PreallocatedLayer) else True


def _is_sliceable(layer: Any) -> bool:
    return isinstance(layer, PreallocatedLayer) and not isinstance(layer, RecurrentLayer)


def is_stateless(layer: Any) -> bool:
    """Whether transformers has a layer here only so that they can be counted."""
    return type(layer).__name__ == "DummyLayer"


def _tensors(layer: Any) -> list[Tensor]:
    values = list(layer.tensors) if isinstance(layer, PreallocatedLayer) else []
    for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
        values.extend(states.values())
    return [value for value in values if isinstance(value, torch.Tensor)]
