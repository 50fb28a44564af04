"""Stand-ins for tensors in elementwise functions, which need not see the entire tensor at once.

Models compute `down(activation(gate(x)) * up(x))`. If gate and up return a stand-in, torch dispatches each function to
it first: elementwise functions are applied as the subclass defines, and all others get the tensor itself.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
BY_NUMBER: frozenset[Function] = frozenset((
    operator.mul, operator.add, operator.sub, operator.truediv, operator.pow, operator.neg, F.silu, F.gelu, F.relu,
    F.relu6, F.sigmoid, F.tanh, F.softplus, torch.relu,
    torch.sigmoid, torch.tanh, torch.erf, torch.exp, torch.square, torch.pow, torch.mul, torch.add, torch.sub,
))  # fmt: skip
"""Elementwise functions: an element of the result depends only on the arguments' elements at the same place."""


def _forwards(function: Function) -> Function:
    return lambda self, other: ask(function, (self, other), {})


def _backwards(function: Function) -> Function:
    return lambda self, other: ask(function, (other, self), {})


class Pointwise(ABC):
    """Base of the stand-ins."""

    __add__, __radd__ = _forwards(operator.add), _backwards(operator.add)
    __sub__, __rsub__ = _forwards(operator.sub), _backwards(operator.sub)
    __mul__, __rmul__ = _forwards(operator.mul), _backwards(operator.mul)
    __truediv__, __rtruediv__ = _forwards(operator.truediv), _backwards(operator.truediv)
    __pow__, __rpow__ = _forwards(operator.pow), _backwards(operator.pow)

    @abstractmethod
    def whole(self) -> Tensor:
        """Return the tensor (..., N) itself."""

    @abstractmethod
    def applied(self, function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Self:
        """Apply a function of BY_NUMBER to this, other stand-ins of its kind and plain numbers."""

    @classmethod
    def __torch_function__(
        cls, function: Function, types: Any, arguments: Sequence[Any] = (), more: Mapping[str, Any] | None = None
    ) -> Any:
        """Dispatch a torch function with a stand-in among its arguments."""
        return ask(function, arguments, more or {})

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the tensor itself."""
        return getattr(self.whole(), name)

    def __getitem__(self, place: Any) -> Tensor:
        return self.whole()[place]

    def __neg__(self) -> Any:
        return ask(operator.neg, (self,), {})


def ask(function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Any:
    """Apply a function: to the stand-ins if it is elementwise, otherwise to their tensors."""
    first = next((one for one in arguments if isinstance(one, Pointwise)), None)
    if function is F.dropout and not more.get("training", True):
        return arguments[0]
    plain = all(isinstance(one, Pointwise | int | float) for one in arguments)
    named = all(isinstance(value, int | float | str | type(None)) for value in more.values())
    if first is not None and function in BY_NUMBER and plain and named and not more.get("inplace"):
        return first.applied(function, arguments, more)
    return function(*map(_whole, arguments), **{name: _whole(value) for name, value in more.items()})


def _whole(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(map(_whole, argument))
    return argument.whole() if isinstance(argument, Pointwise) else argument
