"""The states of the KV cache's layers by name, for copying them elsewhere and restoring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.layers.kv_cache import KVCache, is_stateless
from core.layers.kv_layers import PreallocatedLayer, SlidingLayer
from core.layers.kv_packed import PackedLayer
from core.layers.recurrent_cache import RecurrentLayer


class LayerStates(NamedTuple):
    """The states of one layer.

    `first`: position in the text of the first token whose keys and values are held; `recent`: unpacked states of the
    newest tokens.
    """

    tensors: Mapping[str, Tensor]
    first: int = 0
    recent: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.recent.values()))

    def copied(self) -> LayerStates:
        """Return copies in RAM."""
        tensors, recent = (
            {name: one.to("cpu", copy=True) for name, one in some.items()} for some in (self.tensors, self.recent)
        )
        return LayerStates(tensors, self.first, recent)


def grows_only(cache: KVCache) -> bool:
    """Return whether the states of tokens never change when others follow: no windows, nothing recurrent."""
    return all(type(one) in (PreallocatedLayer, PackedLayer) or is_stateless(one) for one in cache.layers)


def states_of(cache: KVCache) -> list[LayerStates]:
    """Return the states of each layer of a cache that `can_return`, as views that the next pass may change."""
    return [_states(layer) for layer in cache.layers]


# The tensors were made in inference mode and may only be written to in it.
@torch.inference_mode()
def restore(cache: KVCache, tokens: Sequence[int], states: Sequence[LayerStates], device: torch.device | str) -> None:
    """Replace the cache's content by these states of these tokens; recurrent ones are put on `device`."""
    cache.reset()
    for layer, held in zip(cache.layers, states, strict=True):
        if isinstance(layer, PreallocatedLayer):
            layer.fill(held.tensors["keys"], held.tensors["values"], held.first)
        if isinstance(layer, PackedLayer) and held.recent:
            layer.fill_recent(held.recent["keys"], held.recent["values"])
        if isinstance(layer, RecurrentLayer):
            _restore_recurrent(layer, held.tensors, device)
    cache.tokens[:] = tokens
    cache.mark()


def _states(layer: Any) -> LayerStates:
    found: dict[str, Tensor] = {}
    first = layer.offset if isinstance(layer, SlidingLayer) else 0
    if isinstance(layer, PreallocatedLayer):
        found |= {"keys": layer.keys[:, :, : layer.held], "values": layer.values[:, :, : layer.held]}
    if isinstance(layer, RecurrentLayer):
        for kind, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
            found |= {f"{kind} {at}": state for at, state in states.items() if state is not None}
    recent = layer.newest() if isinstance(layer, PackedLayer) else ()
    return LayerStates(found, first, dict(zip(("keys", "values"), recent, strict=False)))


def _restore_recurrent(layer: RecurrentLayer, tensors: Mapping[str, Tensor], device: torch.device | str) -> None:
    for name, tensor in tensors.items():
        kind, _, place = name.partition(" ")
        if kind == "recurrent":
            layer.update_recurrent_state(tensor.to(device, copy=True), state_idx=int(place))
        elif kind == "conv":
            there = tensor.to(device)
            if not layer.is_conv_states_initialized[int(place)]:
                layer.lazy_initialization(conv_states=there, state_idx=int(place))
            layer.conv_states[int(place)].copy_(there)
            layer.has_previous_state[int(place)] = True
