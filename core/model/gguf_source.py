"""A model from a GGUF file: its meta tree, its tensors, and which of its linears stay packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.layers.moe import fused_names
from core.model.blueprint import build, config_from
from core.model.linear_weights import matrix_names
from core.model.tables import input_table, other_tables
from core.model.trace import is_fused, is_linear
from core.spec import Storage
from core.weights.gguf.blocks import numbers
from core.weights.gguf.config import VECTORS, config_of, family_of
from core.weights.gguf.families import HEAD_ENDS
from core.weights.gguf.files import GgufFiles
from core.weights.gguf.header import Settings, TensorPlace
from core.weights.gguf.kind import file_kind
from core.weights.gguf.weights import GgufWeights, Target, head_tensors, main_dtype, targets
from core.weights.packed_linears import PackedLinears, Piece

MOST_FACTORS = 1 << 14
"""The most RoPE factors that are read from a file: one per pair of a head's columns."""


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file as a transformers model, before any weight is read. `linears`: the parameters that the plan's linears
    are made of, by linear; `stored`: the storage of quantised ones, None if they are converted; `stored_as`: the common
    name of the file's quantisation; `tables_in_file`: token tables whose rows are read from the file."""

    module: Any
    weights: GgufWeights
    linears: Mapping[str, str]
    stored: Mapping[str, Storage | None]
    stored_as: str
    tables_in_file: frozenset[str]

    @property
    def packed(self) -> PackedLinears:
        """The weights of `stored` by the names of the plan's matrices, repacked on access."""
        pieces: dict[str, list[Piece]] = {}
        for linear in (name for name, storage in self.stored.items() if storage is not None):
            parameter = self.linears[linear]
            experts = self.weights.experts(parameter)
            each = [None] if experts is None else range(experts)
            own = [[(parameter, expert)] for expert in each]
            pieces.update(zip(matrix_names(linear, experts), own, strict=True))
        return PackedLinears(self.weights.packed, pieces)


def open_gguf(path: Path) -> GgufModel:
    """Read the headers of a file, or of all its parts, and build the meta tree. Raises HeteGenError."""
    files = GgufFiles(path)
    vectors = {
        name: numbers(files.raw(name), files.tensors[name].type, torch.float32).flatten().tolist()
        for name in VECTORS
        if name in files.tensors and files.tensors[name].elements <= MOST_FACTORS
    }
    config = config_of(files.settings, files.tensors, vectors, path.name)
    module = build(config_from(dict(config)), main_dtype(files.tensors))
    made_of = targets(files.tensors, family_of(files.settings), config["num_hidden_layers"])
    return _model(module, GgufWeights(files, config, made_of))


def open_head(whole: GgufWeights, module: Any) -> GgufModel:
    """Open the MTP head in the file of these weights, which must have one, as weights of `module` (see
    core/model/mtp.py). Raises UnsupportedModel."""
    files, family = whole.files, family_of(whole.files.settings)
    tensors = head_tensors(files.tensors, whole.config["num_hidden_layers"])
    made_of = targets(tensors, replace(family, ends={**family.ends, **HEAD_ENDS}), layers=1)
    return _model(module, GgufWeights(files, whole.config, made_of))


def _model(module: Any, weights: GgufWeights) -> GgufModel:
    """Decide which linears keep the file's packed weights, and which tables stay in the file."""
    linears = dict(_linears(module, weights.targets))
    stored = _stored(linears, weights.targets)
    weights.tables = _in_file(module, linears, stored, weights.targets)
    kept = {linears[name] for name, storage in stored.items() if storage} - {_table(module)}
    weights.kept = weights.tables | kept
    kind = file_kind(weights.files.settings, weights.files.tensors)
    return GgufModel(module, weights, linears, stored, kind, weights.tables)


def describe_gguf(
    settings: Settings, tensors: Mapping[str, TensorPlace], source: str
) -> tuple[Any, dict[str, Storage | None], frozenset[str]]:
    """Return the meta tree, the storage of its linears and the tables that stay in the file, from a header alone.
    Raises HeteGenError."""
    # The values of RoPE factors do not affect any size.
    vectors = {name: [1.0] * min(tensors[name].elements, MOST_FACTORS) for name in VECTORS if name in tensors}
    config = config_of(settings, tensors, vectors, source)
    module = build(config_from(dict(config)), main_dtype(tensors))
    made_of = targets(tensors, family_of(settings), config["num_hidden_layers"])
    linears = dict(_linears(module, made_of))
    stored = _stored(linears, made_of)
    return module, stored, _in_file(module, linears, stored, made_of)


def _in_file(
    module: Any, linears: Mapping[str, str], stored: Mapping[str, Storage | None], made_of: Mapping[str, Target]
) -> frozenset[str]:
    """Return the tables whose rows can be read one by one and that nothing needs as a whole: a head that is tied to the
    input table stays packed."""
    needed = {parameter for name, parameter in linears.items() if not stored.get(name)}
    tables = (_table(module), *(f"{name}.weight" for name in other_tables(module)))
    return frozenset(name for name in tables if name in made_of and made_of[name].is_by_row and name not in needed)


def _stored(linears: Mapping[str, str], made_of: Mapping[str, Target]) -> dict[str, Storage | None]:
    return {name: made_of[parameter].storage for name, parameter in linears.items() if made_of[parameter].is_quantised}


def _linears(module: Any, made_of: Mapping[str, Target]) -> Iterator[tuple[str, str]]:
    """Yield linears by their names in the plan, with the parameter that each is made of."""
    head, table = module.get_output_embeddings(), _table(module)
    for name, child in module.named_modules():
        leaves = {f"{name}.{leaf}": f"{name}.{leaf}" for leaf in fused_names(child)} if is_fused(child) else {}
        if is_linear(child):
            leaves = {name: f"{name}.weight" if child is not head or f"{name}.weight" in made_of else table}
        yield from ((linear, parameter) for linear, parameter in leaves.items() if parameter in made_of)


def _table(module: Any) -> str:
    """Return the name of the input table's parameter."""
    return f"{input_table(module)}.weight"
