"""The forward of decoder layers that our library computes, one at a time or several in one call, for few rows.

In a run of consecutive layers the last one computes all of them (`core.layers.deferral`), if an earlier pass over as
many rows went directly from layer to layer. Layers of one kind (with or without a sliding window) must get the same
mask and positions; otherwise the deferred layers are computed one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import is_
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_layer import USUAL_TURNING, NativeLayer, Turning
from core.kernels.native_library import MOST_FEW
from core.kernels.native_run import NativeRun, RunLayer, Sight
from core.kernels.packed_states import as_stored
from core.layers.after_attention import AfterAttention
from core.layers.attention import MOST_SHARED_ROWS, call_for
from core.layers.deferral import Deferral
from core.layers.kv_cache import CACHE_NAMES, KVCache
from core.layers.kv_layers import PreallocatedLayer
from core.layers.layer_arguments import LENT, POSITIONS, SIDE, Given, by_name, is_side
from core.layers.lent_states import BORROWS, LENDS, TYPE
from core.layers.run_cache import are_alike, holds, room

SCALING, UNSCALED = "llama_4_scaling_beta", "original_max_position_embeddings"
"""The parameters of attention that scales queries at late positions (Ministral 3), and the number of early ones."""


@dataclass(frozen=True)
class Make:
    """The parameters with which ours computes what a layer does.

    `half_angles`: one rotary angle per pair of columns instead of two. `residual`: multiplies the results of attention
    and MLP. `scaled`: the layer's result is multiplied by a scalar of its own.
    """

    activation: str
    half_angles: bool
    residual: float = 1.0
    turning: Turning = USUAL_TURNING
    scaled: bool = False


class FusedForward:
    """The forward of one layer: ours if possible, otherwise its own. `run`: the run that it belongs to."""

    def __init__(
        self, layer: Any, one: NativeLayer, few: NativeLayer | None, make: Make,
        rest: AfterAttention | None,
    ) -> None:  # fmt: skip
        """`one` computes single rows, `few` up to MOST_FEW: the fastest library may differ.

        `rest`: the part after attention, if it is not included in them.
        """
        parameters = inspect.signature(layer.forward).parameters
        self.own = layer.forward
        self.rest = rest
        self.run: LayerRun | None = None
        self.one = one
        self.few = few or one
        self.half_angles = make.half_angles
        self.residual = make.residual
        self.sinks = sinks_of(layer.self_attn)
        self.most_rows = min(MOST_FEW, MOST_SHARED_ROWS * one.kv_heads // one.heads) if few else 1
        self.scale = float(layer.self_attn.scaling)
        self.index = getattr(layer.self_attn, "layer_idx", None)
        self.window = getattr(layer.self_attn, "sliding_window", None)
        self.unscaled = unscaled_positions(layer.self_attn)
        self.lends, self.borrows = (bool(getattr(layer.self_attn, name, False)) for name in (LENDS, BORROWS))
        self._type = str(getattr(layer.self_attn, TYPE, ""))
        self._names = [*parameters][1:]
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), "")

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, M, K) -> (1, M, K)."""
        run, cache, arguments = self.run, kwargs.get(self._cache_name), self.named(args, kwargs)
        if run is not None and arguments is not None and run.puts_off(self, hidden_states, arguments):
            return hidden_states
        if arguments is None or not (self.suits(hidden_states, arguments) and self.has_all(hidden_states, arguments)):
            x = hidden_states if run is None else run.catch_up(self, hidden_states, cache)
            return self.own(x, *args, **kwargs)
        given = Given.of(arguments)
        if run is None:
            return self.alone(hidden_states, given, cache)
        return run.forward(self, hidden_states, given, cache)

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the forward's arguments besides the rows by name; None if ours does not take them."""
        return by_name(self._names, args, kwargs)

    def has_all(self, x: Tensor, arguments: Mapping[str, Any]) -> bool:
        """Return whether the side input for x (1, M, K) and the lent states are there, if the layer reads them.

        Where layers are deferred, such states are made when the run is computed.
        """
        lent, deferred = arguments.get(LENT), self.run is not None and self.run.awaits(x)
        states = lent is not None and (not self.borrows or deferred or self._type in lent)
        return is_side(arguments.get(SIDE), x, self.one.side) and (states or not (self.borrows or self.lends))

    def alone(self, x: Tensor, given: Given, cache: Any) -> Tensor:
        """Compute x (1, M, K) through this layer, (1, M, K)."""
        native = self.native(x.shape[1])
        query, key, value = native.begin(x, *given.angles(self.half_angles))
        keys, values = map(as_stored, self._states(key, value, given, cache))
        call = call_for(query, keys, values, given.mask, self.sinks, self.scale)
        if self.rest is None:
            return native.end(x, call, given.side)
        total, normed = native.attend(x, call)
        total.add_(self.rest(normed) * self.residual if self.residual != 1 else self.rest(normed))
        return total if native.factor == 1 else total.mul_(native.factor)

    def _states(self, key: Tensor, value: Tensor, given: Given, cache: Any) -> Any:
        """Return the keys and values that attention reads, with the new ones (1, KVH, M, D), or lent ones."""
        lent = {} if given.lent is None else given.lent
        if self.borrows:
            return lent[self._type]
        states = (key, value) if cache is None else cache.update(key, value, self.index)
        if self.lends:
            lent[self._type] = states
        return states

    def native(self, rows: int) -> NativeLayer:
        """Return the native layer for so many rows."""
        return self.one if rows == 1 else self.few

    @property
    def kind(self) -> Hashable:
        """Return a key that is equal for layers with the same visible tokens, angles and head sizes."""
        return self.window, self.half_angles, self.one.sizes, self.few.sizes

    def keep_experts(self) -> bool:
        """Limit the rows to those for which our library has the layer's experts, independently of their module.

        Returns whether it has them for one row.
        """
        if self.rest is not None:
            self.rest = self.rest.in_one_call()
            known = takewhile(self.rest.native, range(1, self.most_rows + 1)) if self.rest else ()
            self.most_rows = len(list(known))
        return self.most_rows > 0

    def in_run(self, rows: int, kind: int = 0) -> RunLayer | None:
        """Return this layer as a part of a run for up to so many rows; None if Python must compute some of it."""
        native = self.native(rows)
        if self.rest is None:
            return RunLayer(native, self.sinks, self.scale, kind=kind)
        mixtures = [self.rest.native(number) for number in range(min(rows, 2), rows + 1)]
        return None if None in mixtures else RunLayer(native, self.sinks, self.scale, mixtures[-1], kind)

    def suits(self, x: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """Return whether our library takes x (1, M, K) and these arguments, wherever they lie."""
        mask: Any = kwargs.get("attention_mask")
        positions: Any = kwargs.get("position_embeddings")
        rows = x.shape[1]
        if self.unscaled is not None and not _precede(kwargs.get(POSITIONS), self.unscaled):
            return False
        if rows > self.most_rows or x.shape[0] != 1 or x.dtype is not self.one.dtype or not x.is_contiguous():
            return False
        if rows > 1 if mask is None else mask.dtype is not torch.bool or mask.shape[1] != 1:
            return False
        turned = self.one.turned
        shape = (1, rows, turned // 2 if self.half_angles else turned)
        return (
            isinstance(positions, tuple)
            and len(positions) == 2
            and all(
                one.shape == shape and one.dtype in (x.dtype, torch.float32) and one.is_contiguous()
                for one in positions
                if turned
            )
        )


class LayerRun:
    """Consecutive layers, computed in one call by the last one. `kinds`: the places of the layers of each kind."""

    def __init__(self, layers: Sequence[FusedForward]) -> None:
        """Take layers of equal width that use the same library for each number of rows."""
        self.paused = False
        self._layers = layers
        kinds: dict[Hashable, int] = {}
        self._kinds = {layer: kinds.setdefault(layer.kind, len(kinds)) for layer in layers}
        self.kinds = [[at for at, one in enumerate(layers) if self._kinds[one] == kind] for kind in kinds.values()]
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._firsts = {layer: self.kinds[kind][0] for layer, kind in self._kinds.items()}
        most_rows = min(layer.most_rows for layer in layers)
        self._one, self._few = self._made(1), self._made(most_rows)
        self.unscaled = min((one.unscaled for one in layers if one.unscaled is not None), default=None)
        """See `unscaled_positions`."""
        self.most_rows = most_rows if self._few is not None else 1
        self._deferral = Deferral[Given](len(layers))

    def __len__(self) -> int:
        return len(self._layers)

    def at_once(self, x: Tensor, given: Sequence[Given], cache: Any, sides: Sequence[Tensor]) -> Tensor | None:
        """Compute x (1, M, K) through all layers, `given` by kind, `sides`: the side input of each, if they take any;
        None if they cannot be one call."""
        self._deferral.begin(None)
        return self._in_one_call(x, given, cache, sides)

    def awaits(self, x: Tensor) -> bool:
        """Return whether layers are deferred for x (1, M, K)."""
        return self._deferral.awaits(x)

    def puts_off(self, layer: FusedForward, x: Tensor, arguments: Mapping[str, Any]) -> bool:
        """Return whether the last layer will compute this one for x (1, M, K); its kind was met before in this pass."""
        first, calls = self._firsts[layer], self._deferral.calls
        if layer is self._layers[-1] or first >= len(calls) or not self.awaits(x):
            return False
        given = Given.of(arguments)
        alike = all(map(is_, calls[first].sight, given.sight)) and layer.has_all(x, arguments)
        if not (alike and self._deferral.takes(self._places[layer], x)):
            return False
        calls.append(given)
        return True

    def forward(self, layer: FusedForward, x: Tensor, given: Given, cache: Any) -> Tensor:
        """Compute x (1, M, K): through this layer; deferred, returning x; or through all layers if it is the last."""
        place = self._places[layer]
        if place == 0:
            self._begin(x)
        if not self._joins(layer, x, given):
            x = self._late(x, cache)
            y = layer.alone(x, given, cache)
            self._deferral.passed(place, x, y)
            return y
        return x if place + 1 < len(self._layers) else self._through_all(x, cache)

    def catch_up(self, layer: FusedForward, x: Tensor, cache: Any) -> Tensor:
        """Compute x (1, M, K) through the deferred layers before this one, one by one. Raises ModelFailed."""
        place = self._places[layer]
        if place == 0:  # only an interrupted pass may have deferred layers
            self._deferral.begin(None)
        self._deferral.takes(place, x)
        return self._late(x, cache)

    def _begin(self, x: Tensor) -> None:
        native = self._native(x.shape[1])
        defers = native is not None and not self.paused and x.shape[1] in self._deferral.direct
        self._deferral.begin(x if defers else None)

    def _joins(self, layer: FusedForward, x: Tensor, given: Given) -> bool:
        """Return whether the layer is deferred, or is the last after all others were. Raises ModelFailed."""
        if not self._deferral.takes(self._places[layer], x):
            return False
        first, calls = self._firsts[layer], self._deferral.calls
        alike = first == len(calls) or all(map(is_, calls[first].sight, given.sight))
        if alike:
            calls.append(given)
        return alike

    def _late(self, x: Tensor, cache: Any) -> Tensor:
        """Compute x (1, M, K) through the deferred layers, one by one."""
        for layer, given in zip(self._layers, self._deferral.taken(), strict=False):
            x = layer.alone(x, given, cache)
        return x

    def _native(self, rows: int) -> NativeRun | None:
        """Return the native call of all layers for so many rows."""
        return self._one if rows == 1 else self._few if rows <= self.most_rows else None

    def _through_all(self, x: Tensor, cache: Any) -> Tensor:
        calls = self._deferral.calls
        given, sides = [calls[places[0]] for places in self.kinds], [one.side for one in calls if one.side is not None]
        y = self._in_one_call(x, given, cache, sides)
        if y is None:
            return self._late(x, cache)
        self._deferral.begin(None)
        return y

    def _in_one_call(self, x: Tensor, given: Sequence[Given], cache: Any, sides: Sequence[Tensor]) -> Tensor | None:
        rows, kept = x.shape[1], self._kept(cache)
        native = self._native(rows)
        if native is None or not kept or not (holds(native, kept) or self._suit(kept, x)):
            return None
        sights = self._sights(kept, given, rows)
        if sights is None:
            return None
        if not holds(native, kept):  # looked at again, because a sliding layer may have made room
            native.hold([one.tensors for one in kept])
        y = native(x, sights, sides)
        for one in dict.fromkeys(kept):  # once also for those that several layers read
            one.length += rows
        return y

    def _kept(self, cache: Any) -> list[Any]:
        """Return the layers' KV cache layers; [] if they are not all ours."""
        kept = [cache.layers[layer.index] for layer in self._layers] if isinstance(cache, KVCache) else []
        return kept if all(isinstance(one, PreallocatedLayer) for one in kept) else []

    def _suit(self, kept: Sequence[Any], x: Tensor) -> bool:
        """Return whether keys and values are stored as our library expects."""
        return all(are_alike(ones, x) for ones in self._by_kind(kept))

    def _by_kind(self, kept: Sequence[Any]) -> list[list[Any]]:
        return [[kept[place] for place in places] for places in self.kinds]

    def _sights(self, kept: Sequence[Any], given: Sequence[Given], rows: int) -> dict[int, Sight] | None:
        """Return what each kind of layer sees; None if the layers of a kind hold different tokens."""
        kinds = enumerate(zip(self._by_kind(kept), given, strict=True))
        sights = {kind: self._sight(kind, ones, one, rows) for kind, (ones, one) in kinds}
        found = {kind: sight for kind, sight in sights.items() if sight is not None}
        return found if len(found) == len(sights) else None

    def _sight(self, kind: int, kept: Sequence[PreallocatedLayer], given: Given, rows: int) -> Sight | None:
        places = {room(one, rows) for one in kept}
        first, start, *recent = places.pop()
        if places or kept[0].keys.shape[2] < start + rows:
            return None
        half = self._layers[self.kinds[kind][0]].half_angles
        mask = None if given.mask is None else given.mask[..., : start - first + rows]
        if mask is not None and mask.stride(3) != 1:
            mask = mask.contiguous()
        return Sight(*given.angles(half), mask, first, start - first, *recent)

    def _made(self, rows: int) -> NativeRun | None:
        parts = [part for one in self._layers if (part := one.in_run(rows, self._kinds[one])) is not None]
        return NativeRun(parts) if len(parts) == len(self._layers) else None


def link(layers: Mapping[int, FusedForward]) -> list[LayerRun]:
    """Form runs of consecutive layers, given by number in the model; return the runs."""
    runs = []
    numbered = enumerate(sorted(layers))
    for _, group in groupby(numbered, lambda place: (place[1] - place[0], _likeness(layers[place[1]]))):
        together = [layers[number] for _, number in group]
        shared = sum(map(_shares, together)) in (0, sum(map(_shares, layers.values())))
        run = LayerRun(together) if shared and len(together) > 1 and _may_be_linked(together[0]) else None
        runs += [run] if run else []
        for layer in together:
            layer.run = run
    return runs


def _likeness(layer: FusedForward) -> tuple[Any, ...]:
    """Return a key that is equal for layers that one call may compute."""
    natives = ((native.library, native.sizes[0], native.side, native.dtype) for native in (layer.one, layer.few))
    return (*natives, layer.most_rows > 1, _may_be_linked(layer))


def _shares(layer: FusedForward) -> bool:
    """Return whether other layers read the same keys and values, for which a run must hold all of these."""
    return layer.lends or layer.borrows


def _may_be_linked(layer: FusedForward) -> bool:
    return isinstance(layer.index, int) and layer.in_run(1) is not None


@contextmanager
def one_by_one(runs: Sequence[LayerRun]) -> Iterator[None]:
    """Compute each layer separately, for passes in which something is added between layers, unlike in text passes."""
    for run in runs:
        run.paused = True
    try:
        yield
    finally:
        for run in runs:
            run.paused = False


def unscaled_positions(attention: Any) -> int | None:
    """Return the number of first positions whose queries are not scaled, which ours never does; None = all."""
    if (first := getattr(attention, "first_scaled", None)) is not None:
        return int(first)
    said: Any = getattr(getattr(attention, "config", None), "rope_parameters", None) or {}
    scales = SCALING in said and POSITIONS in inspect.signature(attention.forward).parameters
    return int(said[UNSCALED]) if scales else None


def _precede(positions: Tensor | None, end: int) -> bool:
    """Return whether all positions (1, M) are known and before `end`."""
    return positions is not None and bool((positions < end).all())


def sinks_of(attention: Any) -> Tensor | None:
    """Return the attention sinks (H,) in fp32, if the module has them."""
    sinks = getattr(attention, "sinks", None)
    return None if sinks is None else sinks.detach().float().contiguous()
