"""The decoder layers of a straight pass: all in one native call, or one after the other.

Which arguments transformers gives to each layer is learned from one of its own passes (`core.model.watched_pass`).
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_library import MOST_FEW
from core.layers.fused_forward import LayerRun
from core.layers.kv_cache import KVCache
from core.layers.kv_layers import PreallocatedLayer
from core.layers.layer_arguments import Given
from core.layers.rotary import FREQUENCIES
from core.model.language_half import text_config
from core.startup.torch_threads import one_thread

LAYER_TYPE = "layer_type"
"""The argument of modules whose angles differ between types of layers."""
CACHE, POSITIONS, MASK, ANGLES = "cache", "positions", "mask", "angles"
"""What a pass offers to layers: masks by window, angles by type of layer."""
PLAIN = (bool, str, type(None))
"""Arguments that cannot depend on the position of a pass."""

Offer = Mapping[Hashable, Any]


class Rotary:
    """Makes a decoder's rotary angles, by type of layer where they differ."""

    def __init__(self, module: Any, decoder: nn.Module) -> None:
        found = (child for child in decoder.children() if any(name.endswith(FREQUENCIES) for name in child._buffers))
        self.module = next(found, None)
        config = text_config(module.config)
        differ = self.module is not None and LAYER_TYPE in inspect.signature(self.module.forward).parameters
        self.types = list(config.layer_types) if differ else [""] * config.num_hidden_layers

    def angles(self, x: Tensor, positions: Tensor) -> dict[str, Any]:
        """Return what layers of each type are given for rows x (1, M, K) at positions (1, M)."""
        if self.module is None:
            return {}
        which = {one: {LAYER_TYPE: one} if one else {} for one in set(self.types)}
        return {one: self.module(x, position_ids=positions, **chosen) for one, chosen in which.items()}


class WholeRun:
    """All layers of a model in one native call."""

    def __init__(self, run: LayerRun, rotary: Rotary) -> None:
        self._run = run
        self._rotary = rotary
        self._firsts = [places[0] for places in run.kinds]

    def takes(self, rows: int) -> bool:
        """Return whether so many rows can be one call."""
        return rows <= self._run.most_rows and not self._run.paused

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor | None:
        """Compute x (1, M, K) through all layers; None if this cache needs an ordinary pass."""
        kept, types = [cache.layers[place] for place in self._firsts], self._rotary.types
        scaled = self._run.unscaled is not None and len(cache.tokens) + x.shape[1] > self._run.unscaled
        if scaled or not all(isinstance(one, PreallocatedLayer) for one in kept):
            return None
        angles = self._rotary.angles(x, positions_of(x, cache))
        masks = (mask_of(one, x.shape[1]) for one in kept)
        given = [Given(mask, *angles[types[at]]) for mask, at in zip(masks, self._firsts, strict=True)]
        return self._run.at_once(x, given, cache, ())

    def offer(self, x: Tensor, cache: KVCache) -> Offer:
        """Return nothing for x (1, M, K): such a run needs no arguments of layers."""
        return {}

    def learn(self, calls: Sequence[Mapping[str, Any]], offer: Offer, cache: KVCache) -> bool:
        """Return True: nothing is to be learned."""
        return True


class LayersApart:
    """Layers of any kinds, called one after the other; those that form runs join them as in ordinary passes."""

    def __init__(self, layers: Sequence[nn.Module], runs: Sequence[LayerRun], rotary: Rotary) -> None:
        self._layers: Sequence[Any] = layers
        self._runs = runs
        self._rotary = rotary
        self._kinds: list[Arguments] = []
        self._places: list[int] = []  # of each layer among the kinds

    def takes(self, rows: int) -> bool:
        """Return whether transformers' work around the layers is noticeable beside so many rows."""
        return rows <= MOST_FEW and not any(run.paused for run in self._runs)

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor | None:
        """Compute x (1, M, K) through all layers, whose arguments were learned."""
        offer = self.offer(x, cache)
        given = [kind.of(offer) for kind in self._kinds]
        for layer, place in zip(self._layers, self._places, strict=True):
            y = layer.forward(x, **given[place])
            x = y[0] if isinstance(y, tuple) else y
        return x

    def offer(self, x: Tensor, cache: KVCache) -> Offer:
        """Return what the layers may be given for x (1, M, K)."""
        positions = positions_of(x, cache)
        offer: dict[Hashable, Any] = {CACHE: cache, POSITIONS: positions}
        offer |= {(ANGLES, kind): made for kind, made in self._rotary.angles(x, positions).items()}
        by_window = {one.window: one for one in cache.layers if isinstance(one, PreallocatedLayer)}
        return offer | {(MASK, window): mask_of(one, x.shape[1]) for window, one in by_window.items()}

    def learn(self, calls: Sequence[Mapping[str, Any]], offer: Offer, cache: KVCache) -> bool:
        """Learn from what each layer was given in a pass with this offer; return whether all of that is known."""
        if not len(calls) == len(self._layers) == len(cache.layers):
            return False
        found = []
        for given, kind, kept in zip(calls, self._rotary.types, cache.layers, strict=True):
            keys = (CACHE, POSITIONS, (ANGLES, kind), (MASK, getattr(kept, "window", None)))
            found.append(_arguments(given, {key: offer[key] for key in keys if key in offer}))
        known = [one for one in found if one is not None]
        self._kinds = [one for at, one in enumerate(known) if one not in known[:at]]
        self._places = [self._kinds.index(one) for one in known]
        return len(known) == len(found)


@dataclass(frozen=True)
class Arguments:
    """The arguments of layers of one kind: those that stay the same, and by name what of an offer the others are."""

    fixed: Mapping[str, Any]
    offered: Mapping[str, Hashable]

    def of(self, offer: Offer) -> dict[str, Any]:
        """Return the arguments in a pass with this offer."""
        return {**self.fixed, **{name: offer[key] for name, key in self.offered.items()}}


def positions_of(x: Tensor, cache: KVCache) -> Tensor:
    """Return the positions (1, M) of rows x (1, M, K) after the cache's tokens."""
    start = len(cache.tokens)
    return torch.arange(start, start + x.shape[1]).unsqueeze(0)


def mask_of(kept: PreallocatedLayer, rows: int) -> Tensor | None:
    """Return the mask (1, 1, rows, held + rows) of new tokens after those that a layer sees; one row needs none."""
    if rows == 1:
        return None
    held = min(kept.length, kept.window - 1) if kept.window else kept.length
    # torch's threads, once awake, keep cores from ours: eight rows of a small model then took half as long again.
    with one_thread():
        seen = torch.ones(rows, held + rows, dtype=torch.bool).tril(held)
        return (seen.triu(held - kept.window + 1) if kept.window else seen)[None, None]


def _arguments(given: Mapping[str, Any], offer: Offer) -> Arguments | None:
    """Tell which of a layer's arguments are from this offer; None if one is neither from it nor plain."""
    fixed = {name: value for name, value in given.items() if isinstance(value, PLAIN)}
    offered = {name: _key(value, offer) for name, value in given.items() if name not in fixed}
    return None if None in offered.values() else Arguments(fixed, offered)


def _key(value: Any, offer: Offer) -> Hashable | None:
    """Return the key of a value in the offer; None if it is not there."""
    return next((key for key, one in offer.items() if _same(value, one)), None)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype is other.dtype and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other
