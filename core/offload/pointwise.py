"""What stands for a tensor in functions that go number by number, so that they need not see all of it.

Models write `down(activation(gate(x)) * up(x))`. If gate and up give one of these, torch asks it before each function:
what goes number by number is applied as the subclass likes, and everything else gets the tensor itself.
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
"""Functions whose result has at each place what they make of the numbers at that place."""


def _forwards(function: Function) -> Function:
    return lambda self, other: ask(function, (self, other), {})


def _backwards(function: Function) -> Function:
    return lambda self, other: ask(function, (other, self), {})


class Pointwise(ABC):
    """Base of such stand-ins."""

    __add__, __radd__ = _forwards(operator.add), _backwards(operator.add)
    __sub__, __rsub__ = _forwards(operator.sub), _backwards(operator.sub)
    __mul__, __rmul__ = _forwards(operator.mul), _backwards(operator.mul)
    __truediv__, __rtruediv__ = _forwards(operator.truediv), _backwards(operator.truediv)
    __pow__, __rpow__ = _forwards(operator.pow), _backwards(operator.pow)

    @abstractmethod
    def whole(self) -> Tensor:
        """The tensor (..., N) itself."""

    @abstractmethod
    def applied(self, function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Self:
        """What a function of BY_NUMBER makes of this, others of its kind and plain numbers among the arguments."""

    @classmethod
    def __torch_function__(
        cls, function: Function, types: Any, arguments: Sequence[Any] = (), more: Mapping[str, Any] | None = None
    ) -> Any:
        """torch's question before it calls a function with one of these among its arguments."""
        return ask(function, arguments, more or {})

    def __getattr__(self, name: str) -> Any:
        """What only the tensor has."""
        return getattr(self.whole(), name)

    def __getitem__(self, place: Any) -> Tensor:
        return self.whole()[place]

    def __neg__(self) -> Any:
        return ask(operator.neg, (self,), {})


def ask(function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Any:
    """Apply a function, to the stand-ins where it goes number by number, else to their tensors."""
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
