"""Rotary angles computed on the calling thread alone.

torch would wake its thread pool for the cosines of two rows, which takes milliseconds if another program has the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from core.startup.torch_threads import one_thread

FREQUENCIES = "inv_freq"
"""The end of the buffers' names by which modules that compute rotary angles are recognised."""


def stay_in_thread(module: nn.Module) -> None:
    """Make all modules of the tree that compute rotary angles stay in the calling thread."""
    for part in module.modules():
        if any(name.endswith(FREQUENCIES) for name in part._buffers) and "forward" not in vars(part):
            part.forward = _alone(part.forward)


def _alone(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with one_thread():
            return own(*args, **kwargs)

    return forward
