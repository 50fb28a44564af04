"""Tables with a row per token: the input table, and per-layer input tables in Gemma 3n and 4.

Only a few rows are looked up at a time, so they stay in RAM on every device.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from core.model.file_table import FileTable


def input_table(module: Any) -> str:
    """Return the name of the input table."""
    table = module.get_input_embeddings()
    names: dict[Any, str] = {child: name for name, child in module.named_modules()}
    return names[table]


def other_tables(module: Any) -> dict[str, nn.Module]:
    """Return a language model's other token tables by name."""
    first = module.get_input_embeddings()
    own, rows = set(first.modules()), first.weight.shape[0]
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding | FileTable) and child not in own and _is_long(child, rows)
    }


def put(module: Any, name: str, child: nn.Module) -> None:
    """Replace the submodule with this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, child)


def _is_long(table: Any, rows: int) -> bool:
    """Return whether a table has a row for most tokens and its forward takes ids only. The table within a `FileTable`
    has no weight; a position table has fewer rows or (OPT's) further arguments."""
    asked = inspect.signature(table.forward).parameters
    return table.weight is not None and 2 * table.weight.shape[0] >= rows and len(asked) == 1
