"""Which linears of a model consist of which quantised weights of its checkpoint, and so can stay as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.layers.moe import fused_names
from core.model.trace import is_fused, is_linear
from core.model.weight_names import WeightNames
from core.spec import Storage
from core.weights.packed_linears import Piece
from core.weights.stored.find import Found


@dataclass(frozen=True)
class Kept:
    """Linears that stay packed by their names in the plan; the pieces of each of their matrices, whose rows lie one
    behind the other; and the weights that are used up so."""

    stored: Mapping[str, Storage]
    pieces: Mapping[str, tuple[Piece, ...]]
    weights: frozenset[str]


def kept_linears(module: Any, found: Found, storages: Mapping[str, Storage | None]) -> Kept:
    """What of a checkpoint's quantised weights linears can take as they are."""
    stored: dict[str, Storage] = {}
    pieces: dict[str, tuple[Piece, ...]] = {}
    used: set[str] = set()
    for linear, matrices in _linears(module, found):
        kinds = {storages[name] for matrix in matrices for name, _ in matrix}
        storage = next(iter(kinds))
        if len(kinds) > 1 or storage is None:
            continue
        stored[linear] = storage
        names = [linear] if len(matrices) == 1 else [f"{linear}.{index}" for index in range(len(matrices))]
        pieces.update(zip(names, matrices, strict=True))
        used |= {name for matrix in matrices for name, _ in matrix}
    return Kept(stored, pieces, frozenset(used))


def _linears(module: Any, found: Found) -> Iterator[tuple[str, list[tuple[Piece, ...]]]]:
    """Linears that consist of quantised weights alone, and the pieces of each of their matrices."""
    names = WeightNames(module)
    made_of = names.sources(found.names)
    for path, child in module.named_modules():
        if is_fused(child):
            for leaf in fused_names(child):
                if matrices := _experts(f"{path}.{leaf}", child, names, made_of, found):
                    yield f"{path}.{leaf}", matrices
        elif is_linear(child) and not hasattr(child, "nf"):
            sources = made_of.get(f"{path}.weight", {})
            if list(sources) == [None] and sources[None][0] in found.weights:
                yield path, [((sources[None][0], None),)]


def _experts(
    target: str, child: Any, names: WeightNames, made_of: Mapping[str, Mapping[str | None, list[str]]], found: Found
) -> list[tuple[Piece, ...]]:
    """The pieces of each expert's matrix; none where they are put together in another way than by rows."""
    sources = made_of.get(target, {})
    if not sources or any(name not in found.weights for part in sources.values() for name in part):
        return []
    if list(sources) == [None]:
        (whole,) = sources[None]
        weight = found.weights[whole]
        suits = weight.has_experts and weight.kind.turned == child.is_transposed
        return [((whole, index),) for index in range(child.num_experts)] if suits else []
    order = names.expert_rows(next(pattern for pattern in sources if pattern))
    if child.is_transposed or any(len(sources.get(pattern, ())) != child.num_experts for pattern in order):
        return []
    return (
        [tuple((sources[part][index], None) for part in order) for index in range(child.num_experts)] if order else []
    )
