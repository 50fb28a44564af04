"""torch without its compiler and without other machines: importing these takes a third of a start.

Nothing here is compiled or spread over machines. Yet transformers names both when it is imported, and torch itself
loads the compiler for a tensor on the meta device, only to be told that it is switched off.
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
    """Context: an import of these gives a stand-in. Asked for more than it knows, it imports the real module.

    For one thread at a time. Modules that were imported before stay as they are.
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
    """What the stand-ins know: marks for the compiler, which change nothing without it."""
    if COMPILER in sys.modules:
        return {}
    marks = {"disable": _mark, "allow_in_graph": _mark, "assume_constant_result": _mark}
    return {COMPILER: marks, MASKS: {"TransformGetItemToIndex": _index_tensors}}


class _StandIn(ModuleType):
    def __init__(self, name: str, known: dict[str, Any]) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        # Who looks through all modules for one's file does not want this one; only a package is asked for its path.
        if name.startswith("__") and (name, self.__name__) != ("__path__", COMPILER):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    return _mark if function is None else function


def _index_tensors() -> Any:
    """The context in which transformers makes some rare masks."""
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
