"""Whether output head and input table share one tensor: decided by the checkpoint, whatever config.json says."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from core.model.language_half import text_config
from core.model.weight_names import WeightNames


def tie_weights(module: Any, names: Iterable[str], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Tie or untie head and table of the meta tree as the checkpoint has them.

    The rule is transformers': two tensors with different values stay two, whatever config.json says; a single one
    serves both. `tensors` is None if only names are known.
    """
    ends = _ends(module)
    if ends is None:
        return
    there = dict(found_outside_layers(module, names, ends))
    if len(there) == 2 and _is_tied(module):
        if tensors is not None and not tensors[there[ends[0]]].equal(tensors[there[ends[1]]]):
            _part(module, ends)
    elif len(there) == 1 and not _is_tied(module):
        _tie(module, ends)


def _ends(module: Any) -> tuple[str, str] | None:
    """Return the names of the table's and the head's weights; None if they cannot be shared."""
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    paths = {id(child): name for name, child in module.named_modules()}
    shapes = {getattr(getattr(part, "weight", None), "shape", None) for part in (table, head)}
    if len(shapes) > 1 or None in shapes or not {id(table), id(head)} <= paths.keys():
        return None
    return f"{paths[id(table)]}.weight", f"{paths[id(head)]}.weight"


def found_outside_layers(module: Any, names: Iterable[str], wanted: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield the `wanted` weights that a checkpoint holds, with its name for each, except those of layers."""
    known = WeightNames(module)
    for name in names:
        if not re.search(r"\.\d+\.", name) and (target := known.target(name)[0]) in wanted:
            yield target, name


def _is_tied(module: Any) -> bool:
    return module.get_input_embeddings().weight is module.get_output_embeddings().weight


def _part(module: Any, ends: tuple[str, str]) -> None:
    head = module.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for name in ends:
        module.all_tied_weights_keys.pop(name, None)
    _say(module, tied=False)


def _tie(module: Any, ends: tuple[str, str]) -> None:
    module.get_output_embeddings().weight = module.get_input_embeddings().weight
    module.all_tied_weights_keys[ends[1]] = ends[0]
    _say(module, tied=True)


def _say(module: Any, *, tied: bool) -> None:
    for config in (module.config, text_config(module.config)):
        config.tie_word_embeddings = tied
