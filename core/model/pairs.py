"""Finds linears whose only input is the element-wise combination of one group's outputs: down after gate and up.

In a forward pass, linears return stand-ins that remember their source for as long as only element-wise operations are
applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core.offload.pointwise import Function, Pointwise


class Traced(Pointwise):
    """A linear's output. `sources`: the linears it stems from; access to the tensor itself marks them as `escaped`."""

    def __init__(self, tensor: Tensor, sources: frozenset[str], escaped: set[str]) -> None:
        self.tensor = tensor
        self.sources = sources
        self.escaped = escaped

    def whole(self) -> Tensor:
        self.escaped.update(self.sources)
        return self.tensor

    def applied(self, function: Function, arguments: Sequence[Any], more: Mapping[str, Any]) -> Traced:
        traced = [one for one in arguments if isinstance(one, Traced)]
        tensors = (one.tensor if isinstance(one, Traced) else one for one in arguments)
        return Traced(function(*tensors, **more), frozenset().union(*(one.sources for one in traced)), self.escaped)


class PairTrace:
    """Hooks on linears, by name, that record what each reads."""

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self._escaped: set[str] = set()
        self._reads: dict[str, list[frozenset[str]]] = {}
        self._handles = [self._hook(name, linear) for name, linear in linears.items()]

    def remove(self) -> None:
        """Remove the hooks."""
        for handles in self._handles:
            for handle in handles:
                handle.remove()

    @property
    def pairs(self) -> dict[str, frozenset[str]]:
        """The linears that read others' outputs which nothing else reads, with the names of those others."""
        read_once = [reads[0] for reads in self._reads.values() if len(reads) == 1]
        counted = [name for sources in read_once for name in sources]
        return {
            name: reads[0]
            for name, reads in self._reads.items()
            if len(reads) == 1 and not reads[0] & self._escaped and all(counted.count(one) == 1 for one in reads[0])
        }

    def _hook(self, name: str, linear: nn.Module) -> tuple[Any, Any]:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            given = next(iter(inputs), None)
            if not isinstance(given, Traced):
                return None
            self._reads.setdefault(name, []).append(given.sources)
            return (given.tensor, *inputs[1:])

        def after(_: nn.Module, inputs: Any, made: Tensor) -> Traced:
            return Traced(made, frozenset((name,)), self._escaped)

        return linear.register_forward_pre_hook(before), linear.register_forward_hook(after)
