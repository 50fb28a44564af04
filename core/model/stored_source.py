"""Maps a model's linears to its checkpoint's quantised weights, to find those that can stay as stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from core.layers.moe import fused_names
from core.model.linear_weights import matrix_names
from core.model.trace import is_fused, is_linear
from core.model.weight_names import WeightNames
from core.spec import Storage
from core.weights.packed_linears import Piece
from core.weights.stored.coded import Coded
from core.weights.stored.find import Found

Sources: TypeAlias = Mapping[str | None, Sequence[str]]
"""The tensors that a parameter is made of, by the pattern of the conversion."""


@dataclass(frozen=True)
class Kept:
    """The use of quantised weights: the storage of each linear by its name in the plan, None if it is converted; the
    pieces of each kept matrix, whose rows are concatenated; and the names of the weights that are kept so."""

    stored: Mapping[str, Storage | None]
    pieces: Mapping[str, tuple[Piece, ...]]
    weights: frozenset[str]


def kept_linears(module: Any, found: Found, sketches: Mapping[str, Coded]) -> Kept:
    """Find the quantised weights of a checkpoint that linears can use as stored."""
    names = WeightNames(module)
    made_of = names.sources(found.names)
    stored: dict[str, Storage | None] = {}
    pieces: dict[str, tuple[Piece, ...]] = {}
    for linear, target, child in _linears(module):
        sources = made_of.get(target, {})
        if not sources or any(name not in found.weights for part in sources.values() for name in part):
            continue
        matrices = _matrices(child, names, sources, found)
        stored[linear] = _storage(matrices, _shape(child, names.expected[target]), sketches)
        if stored[linear]:
            own = matrix_names(linear, len(matrices) if is_fused(child) else None)
            pieces.update(zip(own, matrices, strict=True))
    return Kept(stored, pieces, frozenset(name for matrix in pieces.values() for name, _ in matrix))


def _linears(module: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield linears and fused experts by their names in the plan, with the parameter and the module of each."""
    for path, child in module.named_modules():
        if is_fused(child):
            yield from ((f"{path}.{leaf}", f"{path}.{leaf}", child) for leaf in fused_names(child))
        elif is_linear(child):
            yield path, f"{path}.weight", child


def _matrices(child: Any, names: WeightNames, sources: Sources, found: Found) -> list[tuple[Piece, ...]]:
    """Return the pieces of each matrix; none if they are not combined by rows."""
    if list(sources) != [None]:
        return _expert_by_expert(child, names, sources)
    (whole,) = sources[None]
    weight = found.weights[whole]
    if not is_fused(child):
        return [] if isinstance(child, Conv1D) or weight.has_experts else [((whole, None),)]
    suits = weight.has_experts and weight.kind.turned == child.is_transposed
    return [((whole, index),) for index in range(child.num_experts)] if suits else []


def _expert_by_expert(child: Any, names: WeightNames, sources: Sources) -> list[tuple[Piece, ...]]:
    order = names.expert_rows(next(pattern for pattern in sources if pattern))
    if not order or not is_fused(child) or child.is_transposed:
        return []
    if any(len(sources.get(pattern, ())) != child.num_experts for pattern in order):
        return []
    return [tuple((sources[pattern][index], None) for pattern in order) for index in range(child.num_experts)]


def _storage(
    matrices: Sequence[Sequence[Piece]], shape: tuple[int, int], sketches: Mapping[str, Coded]
) -> Storage | None:
    """Return the storage that keeps all of these matrices; None if there is none, if shapes do not match, or if one of
    several would need its input in its own column order."""
    coded = [[sketches[name] for name, _ in matrix] for matrix in matrices]
    every = [one for matrix in coded for one in matrix]
    if len(every) > 1 and any(one.order is not None for one in every):
        return None
    kinds = {one.storage for one in every}
    return next(iter(kinds)) if len(kinds) == 1 and all(_fits(matrix, shape) for matrix in coded) else None


def _fits(parts: Sequence[Coded], shape: tuple[int, int]) -> bool:
    """Return whether the parts, their rows concatenated, have this shape."""
    if any(one.flat for one in parts):
        return sum(one.codes.numel() for one in parts) == shape[0] * shape[1]
    rows, columns = sum(one.codes.shape[0] for one in parts), {one.codes.shape[1] for one in parts}
    return (rows, columns) == (shape[0], {shape[1]})


def _shape(child: Any, parameter: Tensor) -> tuple[int, int]:
    rows, columns = parameter.shape[-2:]
    return (columns, rows) if getattr(child, "is_transposed", False) else (rows, columns)
