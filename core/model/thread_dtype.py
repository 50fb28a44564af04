"""The default dtype of the thread that builds a tree.

transformers sets torch's default dtype, which is the process's, while it builds a tree. A reply that another thread
computes meanwhile would allocate its buffers in that type, and native kernels would write beyond their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

USUAL = torch.float32
"""torch's own default, which nothing here changes."""
NAMES_TYPE = frozenset((Tensor.float, Tensor.to, Tensor.type, Tensor.view))
"""Functions that return the type they are asked for."""

_building = Lock()


class DefaultDtype(TorchFunctionMode):
    """Context for one thread: floating-point tensors have this dtype if nothing else decides on it, i.e. neither the
    call nor a floating-point argument."""

    def __init__(self, dtype: torch.dtype, of: str | None = None) -> None:
        """`of`: the name of the class that is built. Raises ValueError for a dtype that cannot be a default."""
        super().__init__()
        if not dtype.is_floating_point:
            raise ValueError(f"{of or 'A model'} cannot be built with {dtype}")
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        made = func(*args, **given)
        usual = isinstance(made, Tensor) and made.dtype == USUAL
        if not usual or func in NAMES_TYPE or given.get("dtype") is not None or _has_floats((*args, *given.values())):
            return made
        return made.to(self.dtype)


@contextmanager
def building() -> Iterator[None]:
    """Context in which one thread at a time builds trees: patches transformers, so that it sets that thread's default
    dtype only."""
    from transformers import modeling_utils

    with _building:
        setting, getting = modeling_utils.local_torch_dtype, torch.get_default_dtype
        modeling_utils.local_torch_dtype = DefaultDtype
        torch.get_default_dtype = lambda: _of_thread() or getting()
        try:
            yield
        finally:
            modeling_utils.local_torch_dtype, torch.get_default_dtype = setting, getting


def _of_thread() -> torch.dtype | None:
    """Return the default dtype of this thread, None if it builds nothing."""
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return next((mode.dtype for mode in reversed(modes) if isinstance(mode, DefaultDtype)), None)


def _has_floats(values: Iterable[Any]) -> bool:
    """Return whether a floating-point tensor is among these values, or in a list among them."""
    tensors = (each for value in values for each in (value if isinstance(value, list | tuple) else (value,)))
    return any(isinstance(each, Tensor) and each.is_floating_point() for each in tensors)
