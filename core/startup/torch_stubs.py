"""Imports torch without its compiler and its distributed part, which take a third of the start time.

Neither is used here. But transformers refers to both on import, and torch loads the compiler for tensors on the meta
device, only to find that it is switched off.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


@contextmanager
def bare_torch() -> Iterator[None]:
    """Context: importing these modules gives a stub, which imports the real module if asked for more than it knows.

    Not thread-safe. Modules that are already imported stay as they are.
    """
    import torch.distributed

    available = torch.distributed.is_available
    for name, known in _known().items():
        sys.modules.setdefault(name, _StandIn(name, known))
    torch.distributed.is_available = _no
    try:
        yield
    finally:
        torch.distributed.is_available = available
        _remove_stand_ins()


def _known() -> dict[str, dict[str, Any]]:
    """Return the stubs' attributes: decorators for the compiler, which do nothing without it."""
    if COMPILER in sys.modules:
        return {}
    marks = {"disable": _mark, "allow_in_graph": _mark, "assume_constant_result": _mark}
    return {COMPILER: marks, MASKS: {"TransformGetItemToIndex": _index_tensors}}


class _StandIn(ModuleType):
    def __init__(self, name: str, known: dict[str, Any]) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        # Searches through sys.modules (for `__file__`) must not import the real module; only a package needs
        # `__path__`.
        if name.startswith("__") and (name, self.__name__) != ("__path__", COMPILER):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    return _mark if function is None else function


def _index_tensors() -> Any:
    """Return the context manager with which transformers builds some rare masks."""
    return _real(MASKS).TransformGetItemToIndex()


def _real(name: str) -> Any:
    _remove_stand_ins()
    return importlib.import_module(name)


def _remove_stand_ins() -> None:
    for name in (COMPILER, MASKS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _no() -> bool:
    return False
