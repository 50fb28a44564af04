"""The tensors of GGUF files by transformers' names: as numbers, or packed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import UnsupportedModel
from core.kernels.quantized_weight import FLOATS, QuantizedWeight, reordered
from core.sentence import sentence
from core.spec import Storage
from core.weights.gguf.blocks import NUMBERS, numbers, packed
from core.weights.gguf.config import VECTORS
from core.weights.gguf.families import Family
from core.weights.gguf.files import GgufFiles
from core.weights.gguf.header import TensorPlace
from core.weights.gguf.layouts import Config, Layout
from core.weights.gguf.types import common_storage

LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>.+)")
SUFFIX = re.compile(r"(?P<stem>.+?)(?P<suffix>\.weight|\.bias)?")
ORDER = ("gate", "up")
"""The order of the parts of a fused parameter."""
SHARED = ("token_embd.weight", "output.weight")
"""Tensors that an MTP head shares with its model."""
AROUND, COPIES = "nextn.", ("nextn.embed_tokens", "nextn.shared_head_head")
"""Prefixes of the tensors around the layer of an MTP head, and of its own copies of shared ones."""
HEAD_NORM = "nextn.shared_head_norm.weight"


@dataclass
class Target:
    """One parameter of the module, and the file's tensors that it consists of, by the ends of their names."""

    layout: Layout
    turned: bool = False
    sources: dict[str, TensorPlace] = field(default_factory=dict)

    @property
    def axis(self) -> int:
        """The row dimension, counted from the end."""
        first = next(iter(self.sources.values()))
        return -1 if first.name.endswith(".bias") or len(first.shape) == 1 else -2

    @property
    def is_quantised(self) -> bool:
        """Whether the file stores it in blocks."""
        return not any(place.type.is_number for place in self.sources.values())

    @property
    def is_by_row(self) -> bool:
        """Whether it is one quantised matrix of the file, unchanged, so that any row can be read by itself."""
        return self.is_quantised and self.layout == Layout() and not self.turned and len(self.sources) == 1

    @property
    def storage(self) -> Storage | None:
        """The storage that keeps it exactly; None if its blocks must be converted."""
        if self.layout.numbers is not None or any(len(place.shape) == 1 for place in self.sources.values()):
            return None
        return common_storage([place.type for place in self.sources.values()])


class GgufWeights(Mapping[str, Tensor]):
    """Tensors by their names in the module tree, converted to numbers on access. Names in `kept` give zeros that occupy
    no memory: `PackedLinears` holds their weights, and `rows` reads those of `tables`, the tables indexed by token
    id."""

    def __init__(self, files: GgufFiles, config: Config, made_of: dict[str, Target]) -> None:
        """`config`: of the model in these files; `made_of`: the result of `targets` for the wanted part."""
        self.tables: frozenset[str] = frozenset()
        self.files = files
        self.config = config
        self.targets = made_of
        self.dtype = main_dtype(files.tensors)
        self.kept: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Tensor:
        target = self.targets[name]
        if name in self.kept:
            return torch.zeros((), dtype=self.dtype).expand(_shape(target))
        return self.numbers(name, self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for target in self.targets.values() for place in target.sources.values())

    @property
    def has_head(self) -> bool:
        """Whether the file has an MTP head: a layer after the last one, with the weights that join its inputs."""
        return f"blk.{self.config['num_hidden_layers']}.{AROUND}eh_proj.weight" in self.files.tensors

    def numbers(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return one parameter as numbers, in its shape (...) in the tree, whether or not it is kept packed."""
        target = self.targets[name]
        change = target.layout.numbers
        wide = torch.float32 if change else dtype
        parts = {
            stem: numbers(self.files.raw(place.name), place.type, wide).view(place.shape)
            for stem, place in target.sources.items()
        }
        if change is not None:
            return change(self.config, parts).to(dtype)
        whole = next(iter(parts.values())) if len(parts) == 1 else torch.cat(list(parts.values()), dim=target.axis)
        if target.layout.rows is not None:
            whole = whole.index_select(target.axis, target.layout.rows(self.config, whole.shape[target.axis]))
        return whole.transpose(-1, -2) if target.turned else whole

    def rows(self, name: str, places: Tensor) -> Tensor:
        """Return some rows (n, K) of a parameter that `is_by_row`, as numbers."""
        (place,) = self.targets[name].sources.values()
        return numbers(self.files.raw(place.name)[places], place.type, self.dtype)

    def experts(self, name: str) -> int | None:
        """Return the number of experts in a parameter; None for the matrix of a linear."""
        shape = next(iter(self.targets[name].sources.values())).shape
        return shape[0] if len(shape) > 2 else None

    def packed(self, name: str, expert: int | None = None) -> QuantizedWeight:
        """Return one parameter, or one expert's part of it, in its storage."""
        target = self.targets[name]
        assert target.storage is not None
        whole = packed([(self._rows(place, expert), place.type) for place in target.sources.values()], target.storage)
        rows = target.layout.rows
        return whole if rows is None else reordered(whole, rows(self.config, whole.shape[0]))

    def _rows(self, place: TensorPlace, expert: int | None) -> Tensor:
        raw = self.files.raw(place.name)
        return raw if expert is None else raw.view(place.shape[0], -1, raw.shape[1])[expert]


def targets(tensors: Mapping[str, TensorPlace], family: Family, layers: int) -> dict[str, Target]:
    """Map each parameter of the module to the tensors it is made of. Raises UnsupportedModel."""
    found: dict[str, Target] = {}
    parts = family.parts(tensors)
    for name, place in sorted(tensors.items(), key=_gate_first):
        if name in VECTORS or _is_more(name, layers):
            continue
        stem, target = _target(name, family, parts)
        layout = family.layouts.get(stem, Layout())
        turned = family.experts_turned and ".experts." in target and not name.endswith(".bias")
        found.setdefault(target, Target(layout, turned)).sources[stem] = place
    return found


def head_tensors(tensors: Mapping[str, TensorPlace], layers: int) -> dict[str, TensorPlace]:
    """Return the tensors of an MTP head, the first layer after `layers`, named as in a model of one layer."""
    stem = f"blk.{layers}."
    found = {name: tensors[name] for name in SHARED if name in tensors}
    for name, place in tensors.items():
        rest = name.removeprefix(stem)
        if name.startswith(stem) and not rest.startswith(COPIES):
            found[rest if rest.startswith(AROUND) else f"blk.0.{rest}"] = place
    if HEAD_NORM not in found and "output_norm.weight" in tensors:
        found["output_norm.weight"] = tensors["output_norm.weight"]
    return found


def main_dtype(tensors: Mapping[str, TensorPlace]) -> torch.dtype:
    """Return the type to compute with: that of the file's numbers, bf16 if most of it is quantised."""
    sizes: dict[torch.dtype, int] = {}
    for place in tensors.values():
        dtype = NUMBERS.get(place.type.name, torch.bfloat16)
        sizes[dtype] = sizes.get(dtype, 0) + place.nbytes
    most = max(sizes, key=sizes.__getitem__)
    return most if most in FLOATS else torch.float32


def _gate_first(item: tuple[str, TensorPlace]) -> tuple[int, str]:
    return next((number for number, part in enumerate(ORDER) if f"_{part}_" in item[0]), len(ORDER)), item[0]


def _is_more(name: str, layers: int) -> bool:
    """Return whether a tensor belongs to a layer after the last one (multi-token prediction)."""
    found = LAYER.fullmatch(name)
    return found is not None and int(found["layer"]) >= layers


def _target(name: str, family: Family, parts: Mapping[str, str]) -> tuple[str, str]:
    """Return the end of a tensor's name, and the parameter it belongs to. Raises UnsupportedModel."""
    layer = LAYER.fullmatch(name)
    split = SUFFIX.fullmatch(layer["part"] if layer else name)
    assert split is not None
    stem, suffix = split["stem"], split["suffix"] or ""
    part = (parts if layer else family.ends).get(stem)
    if part is None:
        raise UnsupportedModel(
            sentence("The tensor {} has no place in a model of the kind {}.", repr(name[:60]), repr(family.kind)),
            "The file was made by a newer program, or of another version of the model.",
            "Choose the model in its original safetensors version.",
        )
    if part.endswith("*"):
        part, suffix = part[:-1], "_bias" if suffix == ".bias" and ".experts." in part else ""
    return stem, f"{family.layer}.{layer['layer']}.{part}{suffix}" if layer else f"{part}{suffix}"


def _shape(target: Target) -> tuple[int, ...]:
    places = list(target.sources.values())
    shape = list(places[0].shape)
    shape[target.axis] = sum(place.shape[target.axis] for place in places)
    if target.turned:
        shape[-1], shape[-2] = shape[-2], shape[-1]
    return tuple(shape)
