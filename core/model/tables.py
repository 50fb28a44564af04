"""Tables that have a row for each token: the input table, and in Gemma 3n and 4 one of further inputs by layer.

Only a few rows of them are looked up at a time, so they stay in RAM wherever products are made.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from core.model.file_table import FileTable


def input_table(module: Any) -> str:
    """The name of the input table."""
    table = module.get_input_embeddings()
    names: dict[Any, str] = {child: name for name, child in module.named_modules()}
    return names[table]


def other_tables(module: Any) -> dict[str, nn.Module]:
    """Such tables of a language model beside the input table, by their names."""
    first = module.get_input_embeddings()
    own, rows = set(first.modules()), first.weight.shape[0]
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding | FileTable) and child not in own and _is_long(child, rows)
    }


def put(module: Any, name: str, child: nn.Module) -> None:
    """Replace the part of a module that has this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, child)


def _is_long(table: Any, rows: int) -> bool:
    """Whether it has a row for most tokens and is asked for rows alone: the table within a `FileTable` has none, one of
    positions has fewer or (OPT's) asks for more than the ids."""
    asked = inspect.signature(table.forward).parameters
    return table.weight is not None and 2 * table.weight.shape[0] >= rows and len(asked) == 1
