"""The forward of a decoder layer that our library computes, and of several in a row, while few tokens are read at once.

transformers calls one layer after the other all the same. Where layers follow each other directly the first computes
all of them, and the others hand on what they are given. Whether they do is seen, not known: nothing may stand between
them, and all must get the same mask and positions, in a pass over as many rows before.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import is_
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_layer import NativeLayer
from core.kernels.native_library import FEW_ROWS, AttentionCall
from core.kernels.native_run import NativeRun, RunLayer
from core.kernels.packed_states import as_stored
from core.kernels.packed_width import MOST_COLUMNS, PACKED, packed_width
from core.layers.after_attention import AfterAttention
from core.layers.attention import MOST_SHARED_ROWS, seen
from core.layers.kv_cache import CACHE_NAMES, KVCache
from core.layers.kv_layers import PreallocatedLayer, SlidingLayer
from core.layers.kv_packed import PackedLayer, PackedSlidingLayer

KEPT_PLAINLY = (PreallocatedLayer, SlidingLayer, PackedLayer, PackedSlidingLayer)
"""The layers of a cache whose keys and values our library appends by itself."""


@dataclass(frozen=True)
class Make:
    """How ours computes what a layer does. `half_angles`: positions have one for each pair of columns, not two;
    `residual`: what either half of the layer adds is multiplied with it; `turned`: columns of a head that positions
    turn."""

    activation: str
    half_angles: bool
    residual: float = 1.0
    turned: int = 0


class FusedForward:
    """The forward of one layer: ours where it can be, else the layer's own. `run`: the layers that it is one of."""

    def __init__(
        self, layer: Any, one: NativeLayer, few: NativeLayer | None, make: Make,
        rest: AfterAttention | None,
    ) -> None:  # fmt: skip
        """`one` computes single rows, `few` up to FEW_ROWS: the fastest library need not be the same for both. `rest`:
        what the layer adds after attention, if it is not part of them."""
        parameters = inspect.signature(layer.forward).parameters
        self.own = layer.forward
        self.rest = rest
        self.run: LayerRun | None = None
        self.one = one
        self.few = few or one
        self.half_angles = make.half_angles
        self.residual = make.residual
        self.sinks = sinks_of(layer.self_attn)
        self.most_rows = min(FEW_ROWS, MOST_SHARED_ROWS * one.kv_heads // one.heads) if few else 1
        self.scale = float(layer.self_attn.scaling)
        self.index = getattr(layer.self_attn, "layer_idx", None)
        self.window = getattr(layer.self_attn, "sliding_window", None)
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), "")

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, M, K) -> (1, M, K)."""
        if self.run is not None and self.run.has_made(hidden_states):
            return hidden_states
        if args or not self.suits(hidden_states, kwargs):
            return self.own(hidden_states, *args, **kwargs)
        given = self._given(kwargs)
        return self.alone(hidden_states, given) if self.run is None else self.run.forward(self, hidden_states, given)

    def alone(self, x: Tensor, given: Given) -> Tensor:
        """x (1, M, K) through this layer, (1, M, K)."""
        native = self.native(x.shape[1])
        query, key, value = native.begin(x, *given.angles(self.half_angles))
        if given.cache is not None:
            key, value = map(as_stored, given.cache.update(key, value, self.index))
        call = AttentionCall(query, key, value, seen(given.mask, query, key), self.sinks, self.scale, 0.0)
        if self.rest is None:
            return native.end(x, call)
        total, normed = native.attend(x, call)
        return total.add_(self.rest(normed) * self.residual if self.residual != 1 else self.rest(normed))

    def native(self, rows: int) -> NativeLayer:
        """What computes so many rows of input."""
        return self.one if rows == 1 else self.few

    def in_run(self, rows: int) -> RunLayer | None:
        """This layer as a part of a run for up to so many rows; None where Python has to compute some of it."""
        native = self.native(rows)
        if self.rest is None:
            return RunLayer(native, self.sinks, self.scale)
        mixtures = [self.rest.native(number) for number in range(min(rows, 2), rows + 1)]
        return None if None in mixtures else RunLayer(native, self.sinks, self.scale, mixtures[-1])

    def suits(self, x: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """Whether x (1, M, K) and these arguments are such as our library takes, wherever they lie."""
        mask: Any = kwargs.get("attention_mask")
        positions: Any = kwargs.get("position_embeddings")
        rows = x.shape[1]
        if rows > self.most_rows or x.shape[0] != 1 or x.dtype is not self.one.dtype or not x.is_contiguous():
            return False
        if rows > 1 if mask is None else mask.dtype is not torch.bool or mask.shape[1] != 1:
            return False
        shape = (1, rows, self.one.turned // 2 if self.half_angles else self.one.turned)
        return (
            isinstance(positions, tuple)
            and len(positions) == 2
            and all(
                one.shape == shape and one.dtype in (x.dtype, torch.float32) and one.is_contiguous()
                for one in positions
            )
        )

    def _given(self, kwargs: Mapping[str, Any]) -> Given:
        cos, sin = kwargs["position_embeddings"]
        return Given(kwargs.get("attention_mask"), cos, sin, kwargs.get(self._cache_name))


@dataclass(frozen=True, eq=False)
class Given:
    """What transformers hands to a layer besides its rows: mask (1, 1, M, T), angles (1, M, D), the cache."""

    mask: Tensor | None
    cos: Tensor
    sin: Tensor
    cache: Any

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Mask (1, 1, M, T) and angles (1, M, D)."""
        return self.mask, self.cos, self.sin

    def angles(self, half: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001  a trait of the model
        """cos and sin (1, M, turned), of angles given for each pair of columns or for all."""
        if not half:
            return self.cos, self.sin
        return torch.cat((self.cos, self.cos), -1), torch.cat((self.sin, self.sin), -1)


class LayerRun:
    """Layers that follow each other, computed by the first one's call."""

    def __init__(self, layers: Sequence[FusedForward]) -> None:
        """Layers of one size, for each number of rows of one library."""
        self.paused = False
        self._layers = layers
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._one, self._few = _native_run(layers, 1), _native_run(layers, layers[0].most_rows)
        self._watch = Watch(len(layers))
        self._result: Tensor | None = None

    def has_made(self, x: Tensor) -> bool:
        """Whether x (1, M, K) is what all layers of this run make of what the first of them got."""
        return x is self._result

    def forward(self, layer: FusedForward, x: Tensor, given: Given) -> Tensor:
        """x (1, M, K) through this layer, (1, M, K); or through all of them, where it is the first."""
        place = self._places[layer]
        assert place == 0 or self._result is None, "something stands between these layers that did not before"
        native = self._native(x.shape[1]) if place == 0 else None
        self._result = None if native is None else self._through_all(native, x, given)
        if self._result is not None:
            return self._result
        y = layer.alone(x, given)
        self._watch.passed(place, x, y, given)
        return y

    def _native(self, rows: int) -> NativeRun | None:
        """What computes all layers for so many rows, if that may be done."""
        return (self._one if rows == 1 else self._few) if rows in self._watch.direct and not self.paused else None

    def _through_all(self, native: NativeRun, x: Tensor, given: Given) -> Tensor | None:
        """None where keys and values are not kept as our library takes it for granted."""
        rows, kept = x.shape[1], self._kept(given.cache)
        if not kept or not all(_is_like(one, kept[0], x) for one in kept):
            return None
        places = {one.make_room(rows) for one in kept}
        if len(places) > 1 or kept[0].keys.shape[2] < max(places)[1] + rows:
            return None
        first, start = places.pop()
        for place, one in enumerate(kept):
            native.place(place, one.keys, one.values)
        mask = None if given.mask is None else given.mask[..., : start - first + rows]
        if mask is not None and mask.stride(3) != 1:
            mask = mask.contiguous()
        y = native(x, *given.angles(self._layers[0].half_angles), mask, first, start - first)
        for one in kept:
            one.length += rows
        return y

    def _kept(self, cache: Any) -> list[PreallocatedLayer]:
        if not isinstance(cache, KVCache):
            return []
        kept = [cache.layers[layer.index] for layer in self._layers]
        return kept if type(kept[0]) in KEPT_PLAINLY and len({type(one) for one in kept}) == 1 else []


class Watch:
    """Which numbers of rows went through all layers of a run with nothing between them. `direct`: these numbers."""

    def __init__(self, layers: int) -> None:
        self.direct: set[int] = set()
        self._layers = layers
        self._seen = 0
        self._last: tuple[Tensor | None, ...] = ()  # without the cache, which may be replaced at any time

    def passed(self, place: int, x: Tensor, y: Tensor, given: Given) -> None:
        """Layer `place` made y (1, M, K) of x."""
        follows = len(self._last) > 0 and all(map(is_, self._last, (x, *given.tensors)))
        self._seen = 1 if place == 0 else place + 1 if follows and self._seen == place else 0
        self._last = (y, *given.tensors)
        if self._seen == self._layers:
            self.direct.add(x.shape[1])


def link(layers: Mapping[int, FusedForward]) -> list[LayerRun]:
    """Let layers that follow each other, by their numbers in the model, be computed together."""
    runs = []
    numbered = enumerate(sorted(layers))
    for _, group in groupby(numbered, lambda place: (place[1] - place[0], _likeness(layers[place[1]]))):
        together = [layers[number] for _, number in group]
        run = LayerRun(together) if len(together) > 1 and _may_be_linked(together[0]) else None
        runs += [run] if run else []
        for layer in together:
            layer.run = run
    return runs


def _likeness(layer: FusedForward) -> tuple[Any, ...]:
    """The same for layers that one call may compute."""
    natives = ((native.library, native.sizes, native.dtype) for native in (layer.one, layer.few))
    return (*natives, layer.half_angles, layer.most_rows, layer.window, _may_be_linked(layer))


def _may_be_linked(layer: FusedForward) -> bool:
    return isinstance(layer.index, int) and layer.in_run(1) is not None


def _native_run(layers: Sequence[FusedForward], rows: int) -> NativeRun | None:
    parts = [part for layer in layers if (part := layer.in_run(rows)) is not None]
    return NativeRun(parts) if len(parts) == len(layers) else None


def _is_like(kept: PreallocatedLayer, first: PreallocatedLayer, x: Tensor) -> bool:
    """Whether it holds as many tokens as the first, in as much memory, where x (1, M, K) is, as it is or packed."""
    return (
        kept.is_initialized and kept.length == first.length and kept.home is None
        and kept.keys.device == x.device and kept.keys.dtype in (x.dtype, PACKED)
        and kept.keys.dtype is first.keys.dtype and kept.keys.shape == first.keys.shape
        and kept.keys.shape[3] <= packed_width(MOST_COLUMNS)
    )  # fmt: skip


@contextmanager
def one_by_one(runs: Sequence[LayerRun]) -> Iterator[None]:
    """Inside, each layer is computed by itself: where something is added between them that no pass over text has."""
    for run in runs:
        run.paused = True
    try:
        yield
    finally:
        for run in runs:
            run.paused = False


def sinks_of(attention: Any) -> Tensor | None:
    """What heads (H,) attend to besides keys, in fp32, if the module has that."""
    sinks = getattr(attention, "sinks", None)
    return None if sinks is None else sinks.detach().float().contiguous()
