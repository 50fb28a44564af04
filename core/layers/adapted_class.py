"""Classes of ours for modules of transformers' trees, which keep their attributes, parameters and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def adapt_classes(root: Any, classes: Mapping[str, type[nn.Module]]) -> list[Any]:
    """Let the modules of a tree whose classes have these names do first what ours define; return them.

    They stay instances of their own classes, by which transformers initialises buffers that no checkpoint holds.
    """
    found = [module for module in root.modules() if type(module).__name__ in classes]
    for module in found:
        own = type(module)
        module.__class__ = type(own.__name__, (classes[own.__name__], own), {})
    return found
