"""Angles of positions, computed in the calling thread alone: torch wakes others for the cosines of two rows, and where
another program has their processor it waits for milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from core.startup.torch_threads import one_thread

FREQUENCIES = "inv_freq"
"""The buffer that a module has which makes angles of positions."""


def stay_in_thread(module: nn.Module) -> None:
    """Let all parts of the tree that make angles of positions compute in the calling thread."""
    for part in module.modules():
        if FREQUENCIES in part._buffers and "forward" not in vars(part):
            part.forward = _alone(part.forward)


def _alone(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with one_thread():
            return own(*args, **kwargs)

    return forward
