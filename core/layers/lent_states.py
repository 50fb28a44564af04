"""Decoder layers that read the keys and values of an earlier one instead of making their own (Gemma 3n and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

LENDS, BORROWS, TYPE = "store_full_length_kv", "is_kv_shared_layer", "layer_type"
"""The attributes of attention that writes such states, that reads them, and that names which ones."""


def lends(layer: nn.Module) -> bool:
    """Return whether a layer gives its keys and values to later ones."""
    return bool(getattr(getattr(layer, "self_attn", None), LENDS, False))


def borrows(layer: nn.Module) -> bool:
    """Return whether a layer reads the keys and values of an earlier one."""
    return bool(getattr(getattr(layer, "self_attn", None), BORROWS, False))


def lenders(layers: Sequence[Any]) -> dict[Any, int]:
    """Return, for each layer that borrows, the place in the KV cache of the layer that lends."""
    latest: dict[Any, int] = {}
    found = {}
    for layer in layers:
        if lends(layer):
            latest[getattr(layer.self_attn, TYPE, None)] = layer.self_attn.layer_idx
        if borrows(layer) and (place := latest.get(getattr(layer.self_attn, TYPE, None))) is not None:
            found[layer] = place
    return found


def lent_heads(attention: Any, heads: int) -> int:
    """Return how many heads the keys and values have that attention with these `heads` borrows; 0 if it makes its
    own."""
    return heads // int(attention.num_key_value_groups) if getattr(attention, BORROWS, False) else 0
