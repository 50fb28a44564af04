"""Tensors that stand for floats which are not computed yet: every function but our attention sees the floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class FloatStandIn(Tensor):
    """Keys or values as a cache or a layer returns them to a model.

    Most models pass them unchanged to attention, which reads what they stand for. Some compute with them first; for
    these, `__torch_function__` makes the floats.
    """

    def floats(self) -> Tensor:
        """Return what this stands for, (B, H, T, D)."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        return func(*tree_map(as_floats, tuple(args)), **tree_map(as_floats, dict(kwargs or {})))


def as_floats(one: Any) -> Any:
    """Return the floats (B, H, T, D) of a stand-in, and anything else unchanged."""
    return one.floats() if isinstance(one, FloatStandIn) else one
