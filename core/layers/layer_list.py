"""A list of layers of which all are asked for in each pass: transformers takes `layers[:count]`, and torch makes a new
list of modules of that, which takes as long as a tenth of a small model's token."""

from __future__ import annotations

from typing import Any

from torch import nn


class LayerList(nn.ModuleList):
    """A list that gives itself where all of it is asked for."""

    def __getitem__(self, index: Any) -> Any:
        """One layer, or those of a slice."""
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return super().__getitem__(index)


def keep_lists(module: nn.Module) -> None:
    """Let the tree's lists of modules be such ones."""
    for part in module.modules():
        if type(part) is nn.ModuleList:
            part.__class__ = LayerList
