"""Keys and values divided by heads: those of the first heads lie on a device, those of the others in RAM.

A layer's buffers are allocated divided (`ByHeads`), and behave like one tensor where tokens are written, cut off or
moved; so rewinding, parking and saving are the same for all buffers. Our attention reads each part where it lies.
Everything else gets the whole tensor in RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.layers.kv_layers import Allocate, on_host

NOWHERE = torch.device("meta")


class DividedStates:
    """Keys or values (1, H, T, D): `there` those of the first heads, on a device; `here` those of the others, in RAM.

    They are indexed by tokens only. `device` is none of the two, so that no one takes them for a tensor of either.
    """

    device = NOWHERE

    def __init__(self, there: Tensor, here: Tensor) -> None:
        self.there = there
        self.here = here

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole tensor."""
        heads = self.there.shape[1] + self.here.shape[1]
        return torch.Size((self.here.shape[0], heads, *self.here.shape[2:]))

    @property
    def dtype(self) -> torch.dtype:
        """The type of both parts."""
        return self.here.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of both parts."""
        return self.there.nbytes + self.here.nbytes

    def whole(self) -> Tensor:
        """Return a copy of the whole tensor (1, H, T, D) in RAM."""
        return torch.cat((self.there.cpu(), self.here), 1)

    def clone(self) -> DividedStates:
        """Return a copy that is divided alike."""
        return DividedStates(self.there.clone(), self.here.clone())

    def __getitem__(self, tokens: Any) -> DividedStates:
        return DividedStates(self.there[tokens], self.here[tokens])

    def __setitem__(self, tokens: Any, states: Any) -> None:
        self.there[tokens], self.here[tokens] = self._divided_alike(states)

    def _divided_alike(self, states: Any) -> tuple[Tensor, Tensor]:
        border = self.there.shape[1]
        if isinstance(states, DividedStates):
            if states.there.shape[1] == border:
                return states.there, states.here
            states = states.whole()
        return states[:, :border], states[:, border:]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the whole tensor."""
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        arguments: Sequence[Any] = (),
        more: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a torch function with the whole tensors."""
        return function(*map(_whole, arguments), **{name: _whole(value) for name, value in (more or {}).items()})


def _whole(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(map(_whole, argument))
    return argument.whole() if isinstance(argument, DividedStates) else argument


@dataclass(frozen=True)
class ByHeads:
    """Allocates buffers whose first `heads` are allocated by `there`, and the others in RAM."""

    there: Allocate
    heads: int

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Any:
        """Allocate uninitialised states (1, H, T, D)."""
        batch, heads, *rest = shape
        there = self.there((batch, self.heads, *rest), dtype)
        return DividedStates(there, on_host((batch, heads - self.heads, *rest), dtype))


def less_on_device(now: Allocate, then: Allocate) -> Allocate:
    """Return the one of two places on the same device that holds fewer heads there."""
    if not isinstance(then, ByHeads):
        return now
    return now if isinstance(now, ByHeads) and now.heads < then.heads else then
