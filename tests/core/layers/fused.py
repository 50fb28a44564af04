"""A small model of a family, fused where our library's calls fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.events import LoadOptions
from core.spec import Format
from tests.core.families import make_model
from tests.core.greedy import GreedyPath

PROMPT = [5, 17, 3, 99, 42, 7, 180, 11, 64, 23, 151, 8]


def load(
    family: str, folder: Path, format: Format = "int8", dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> GreedyPath:
    """Make a model with these changes to its configuration; return its path to greedy tokens."""
    make_model(family, folder, dtype=dtype, **changes)
    return GreedyPath(folder, LoadOptions(format=format, context=256, threads=1))
