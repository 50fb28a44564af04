"""A small model of a family, fused where our library's calls fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.events import LoadOptions
from core.spec import Format
from tests.core.families import make_model
from tests.core.greedy import GreedyPath

Kind = TypeVar("Kind")
PROMPT = [5, 17, 3, 99, 42, 7, 180, 11, 64, 23, 151, 8]


def load(
    family: str, folder: Path, format: Format = "int8", dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> GreedyPath:
    """Make a model with these changes to its configuration; return its path to greedy tokens."""
    make_model(family, folder, dtype=dtype, **changes)
    return GreedyPath(folder, LoadOptions(format=format, context=256, threads=1))


def forwards(root: Any, kind: type[Kind]) -> list[Kind]:
    """Return the forwards of this kind that stand in place of the modules' own."""
    return [own for module in root.modules() if isinstance(own := vars(module).get("forward"), kind)]


def count_own(layers: Sequence[Any]) -> list[int]:
    """Count the rows of each call of the layers' own forwards from now on."""
    counted: list[int] = []
    for layer in layers:

        def counting(hidden_states: Tensor, *args: Any, own: Any = layer.own, **kwargs: Any) -> Any:
            counted.append(hidden_states.shape[1])
            return own(hidden_states, *args, **kwargs)

        layer.own = counting
    return counted
