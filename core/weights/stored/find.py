"""Finds a checkpoint's quantised weights and their format from the headers of its files, without reading weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ModelUnreadable, UnsupportedModel
from core.sentence import sentence
from core.weights.safetensors_header import TensorInfo
from core.weights.stored.kinds import FLOAT8, KINDS, Kind
from core.weights.stored_formats import StoredFormat, is_odd

PART_NAMES = {"scales": "scales", "zeros": "zero points", "whole": "scales", "inverse": "scales"}


@dataclass(frozen=True)
class StoredWeight:
    """One quantised weight, by the name that it would have unquantised, and its tensors by role."""

    name: str
    kind: Kind
    parts: Mapping[str, TensorInfo]

    @property
    def has_experts(self) -> bool:
        """Whether it holds all experts of a layer, as its first dimension."""
        return len(self.parts["codes"].shape) > self.kind.dimensions

    @property
    def form(self) -> tuple[Any, ...]:
        """What determines a weight's shape and storage; equal for weights that are stored alike."""
        return (self.kind.decode, *((role, info.dtype, info.shape) for role, info in self.parts.items()))


@dataclass(frozen=True)
class Found:
    """A checkpoint's plain tensors and its quantised weights, by name."""

    plain: Mapping[str, TensorInfo]
    weights: Mapping[str, StoredWeight] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The tensors that the checkpoint would hold unquantised."""
        return [*self.plain, *self.weights]

    @property
    def title(self) -> str:
        """The title of the most common kind of quantised weight; empty if there is none."""
        titles = [weight.kind.title for weight in self.weights.values()]
        return max(set(titles), key=lambda title: (titles.count(title), title), default="")


def find_stored(tensors: Mapping[str, TensorInfo], stored: StoredFormat) -> Found:
    """Separate quantised weights and their parts from plain tensors. Raises UnsupportedModel, ModelUnreadable."""
    weights = {weight.name: weight for weight in _weights(tensors)}
    used = {name for weight in weights.values() for name in _consumed(weight, tensors)}
    plain = {name: info for name, info in tensors.items() if name not in used}
    for name, info in plain.items():
        if is_odd(info):
            raise UnsupportedModel(
                sentence("The weights are quantised in a way that is not known ({}).", stored.method),
                sentence("It shows in {}.", name),
                "Choose another version of the model.",
            )
    return Found(plain, weights)


def _weights(tensors: Mapping[str, TensorInfo]) -> Iterator[StoredWeight]:
    scaled = any(name.endswith(("_scale", "_scale_inv", ".scale")) for name in tensors)
    for name, info in tensors.items():
        for kind in KINDS:
            if info.dtype not in kind.dtypes or not name.endswith(kind.main):
                continue
            parts = _parts(name, kind, tensors)
            if kind.marks(parts):
                missing = [role for role in kind.needed if role not in parts]
                # Weights that were only cast to float8 have no scales anywhere.
                if missing and (scaled or info.dtype not in FLOAT8):
                    raise _lacking(name, missing[0])
                yield StoredWeight(_stem(name, kind) + kind.target, kind, parts)
                break


def _parts(name: str, kind: Kind, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    stem, found = _stem(name, kind), {"codes": tensors[name]}
    for role, ends in kind.parts.items():
        there = next((tensors[stem + end] for end in ends if stem + end in tensors), None)
        if there is not None:
            found[role] = there
    return found


def _stem(name: str, kind: Kind) -> str:
    return name.removesuffix(kind.main) if kind.main else name


def _consumed(weight: StoredWeight, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield the names of a weight's tensors, and of those beside it that are ignored."""
    yield from (info.name for info in weight.parts.values())
    stem = _stem(weight.parts["codes"].name, weight.kind)
    yield from (stem + end for end in weight.kind.dropped if stem + end in tensors)


def _lacking(name: str, role: str) -> ModelUnreadable:
    return ModelUnreadable(
        sentence("The quantised weight {} lacks its {}.", name, PART_NAMES.get(role, "scales")), "",
        "Download the model again.",
    )  # fmt: skip
