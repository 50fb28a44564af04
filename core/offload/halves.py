"""Results of split linears that stay where they were computed: some columns on the device, the others on the host.

Gate and up are split by rows, and down by the same columns. The CPU's rows of gate and up produce exactly the input of
its columns of down, so that no half is copied before down, whose two partial sums are added. Activation and product
between them are elementwise, and are applied to each half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.offload.pointwise import Function, Pointwise

Made = TypeVar("Made")


class Later(Generic[Made]):
    """A lazily computed value."""

    def __init__(self, compute: Callable[[], Made]) -> None:
        self._compute = compute
        self._made: list[Made] = []

    def __call__(self) -> Made:
        """Return the value, computed on the first call."""
        if not self._made:
            self._made.append(self._compute())
            del self._compute  # also releases what it holds
        return self._made[0]


class Halves(Pointwise):
    """`there`: the first columns (..., k), in a list that a launch fills; `here`: the other columns, on the host.

    Operations on the first half are launched at once. Those on the other are deferred, so that the device has all of
    its work before the CPU starts.
    """

    def __init__(
        self, accelerator: Accelerator, there: list[Tensor], here: Later[Tensor], lead: tuple[int, ...], of: torch.dtype
    ) -> None:
        """`lead`: the shape (...) before the columns; `of`: the dtype."""
        self.there = there
        self.here = here
        self.lead = lead
        self.of = of
        self._accelerator = accelerator

    def applied(self, function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Halves:
        there: list[Tensor] = []
        self._accelerator.launch(lambda: there.append(_apply(function, arguments, more, lambda one: one.there[0])))
        here = Later(lambda: _apply(function, arguments, more, lambda one: one.here()))
        return Halves(self._accelerator, there, here, self.lead, self.of)

    def whole(self) -> Tensor:
        """Return (..., N) on the device."""
        others = self._accelerator.to_device(self.here())
        self._accelerator.settle()
        return torch.cat((self.there[0], others), dim=-1)


def _apply(
    function: Function, arguments: Sequence[Any], more: Mapping[str, Any], half: Callable[[Halves], Tensor]
) -> Tensor:
    made: Tensor = function(*(half(one) if isinstance(one, Halves) else one for one in arguments), **more)
    return made
