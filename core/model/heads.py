"""Finds attention that can be divided by heads: its KV heads, with their queries, are independent of each other.

transformers says of each family how its linears may be divided over several cards. Where queries, keys and values are
divided by rows and the output's projection by columns, and the results of nothing in between are gathered, the
module's forward computes any number of heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from core.layers.kv_cache import is_packable
from core.model.blueprint import decoder_layers
from core.model.language_half import text_config
from core.spec import QUANTUM, LinearSpec

BY_ROWS, BY_COLUMNS = "colwise", "rowwise"
"""transformers' words for a division of the weight by rows and by columns: it counts those of the transposed weight."""
PROJECTIONS, OUTPUT = ("q_proj", "k_proj", "v_proj"), "o_proj"


def with_heads(module: Any, linears: Sequence[LinearSpec], cache: Any) -> tuple[LinearSpec, ...]:
    """Mark the output projections of attention that can be divided by heads, for a cache that the model has filled."""
    named = {one.name: one for one in linears}
    paths = {id(child): path for path, child in module.named_modules()}
    found = {one.name: one for one in _marked(module, named, paths, cache)}
    return tuple(found.get(one.name, one) for one in linears)


def _marked(module: Any, named: dict[str, LinearSpec], paths: dict[int, str], cache: Any) -> Iterator[LinearSpec]:
    plan = getattr(text_config(module.config), "base_model_tp_plan", None) or {}
    for layer in decoder_layers(module):
        for leaf, child in layer.named_children():
            words = [plan.get(f"layers.*.{leaf}.{name}") for name in (*PROJECTIONS, OUTPUT)]
            if words != [BY_ROWS] * len(PROJECTIONS) + [BY_COLUMNS] or not _is_divisible(child, cache):
                continue
            names, within = [f"{paths[id(child)]}.{name}" for name in (*PROJECTIONS, OUTPUT)], f"{paths[id(child)]}."
            if {name for name in named if name.startswith(within)} != {*names}:
                continue
            *parts, output = (named[name] for name in names)
            if (heads := _heads(child, parts)) > 1 and output.columns == parts[0].rows:
                yield replace(output, attends=parts[0].group, heads=heads)


def _is_divisible(attention: nn.Module, cache: Any) -> bool:
    """Return whether a module has one layer of the cache with nothing but keys and values, and weights that all heads
    share in its norms and nowhere else."""
    index = getattr(attention, "layer_idx", None)
    held = isinstance(index, int) and index < len(cache.layers) and is_packable(cache.layers[index])
    norms = (child for name, child in attention.named_children() if name not in (*PROJECTIONS, OUTPUT))
    shared = all(one.numel() <= _width(attention) for norm in norms for one in norm.parameters())
    return held and shared and not attention._parameters and not attention._buffers


def _width(attention: nn.Module) -> int:
    """Return the size of a head, 0 if unknown."""
    return int(getattr(attention, "head_dim", None) or 0)


def _heads(attention: nn.Module, parts: Sequence[LinearSpec]) -> int:
    """Return the number of KV heads, 0 if the projections do not have whole heads; queries share keys in equal
    parts."""
    width = _width(attention)
    queries, keys, values = parts
    if not width or width % QUANTUM:
        return 0
    alone = queries.group == keys.group == values.group and keys.rows == values.rows
    whole = keys.rows % width == 0 and queries.rows % keys.rows == 0
    return keys.rows // width if alone and whole else 0
