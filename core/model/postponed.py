"""Weights that will be converted, left out when a tree is filled and built one matrix at a time on demand.

Merging a model's experts, or generating all of a shape's weights, at once would take as much process memory as the
model's files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from functools import partial
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from core.model.weight_names import merges_experts
from core.spec import LinearSpec
from core.weights.random_weights import RandomWeights
from core.weights.row_chunks import row_chunks

Finish = Callable[[str, Tensor, int], Tensor]
"""Checks and casts a target's tensor; the int is 0, or the first dimension of the whole tensor for a part of it."""
PIECE_WEIGHTS = 1 << 22
"""Weights that are built at a time for a matrix that is converted in pieces."""


class Postponed:
    """What a tree does not hold yet, by its names in the tree; `wanted` are those that may be left out."""

    def __init__(self, wanted: Collection[str] = ()) -> None:
        self._wanted = frozenset(wanted)
        self._transforms: dict[str, Any] = {}
        self._checkpoint: Mapping[str, Tensor] = {}
        self._finish: Finish = lambda _, tensor, __: tensor

    def take(self, work: dict[str, Any], checkpoint: Mapping[str, Tensor], finish: Finish) -> None:
        """Move the wanted entries of `work`, transformers' conversions by target, here."""
        self._checkpoint, self._finish = checkpoint, finish
        for target in self._wanted & work.keys():
            if len(work[target].target_patterns) == 1:
                self._transforms[target] = work.pop(target)

    def __contains__(self, target: object) -> bool:
        return target in self._transforms

    def matrices(self, module: Any, linear: LinearSpec) -> Iterator[Tensor]:
        """Yield the matrices (N, K) of one entry of the plan, rows contiguous; each is built on demand."""
        owner, _, leaf = linear.name.rpartition(".")
        if linear.experts is None:
            child = module.get_submodule(owner)._modules[leaf]
            weight = self._whole(f"{linear.name}.weight", module)
            yield (weight.t() if isinstance(child, Conv1D) else weight).contiguous()
            return
        transposed = module.get_submodule(owner).is_transposed
        for one in self._experts(linear.name, module, linear.experts):
            yield (one.t() if transposed else one).contiguous()

    def is_by_rows(self, module: Any, linear: LinearSpec) -> bool:
        """Return whether an entry is a single tensor of the checkpoint, unchanged, so that it has `pieces`."""
        owner, _, leaf = linear.name.rpartition(".")
        child, target = module.get_submodule(owner)._modules.get(leaf), f"{linear.name}.weight"
        whole = target in self and not hasattr(self._transforms[target], "operations")
        return whole and child is not None and not isinstance(child, Conv1D)

    def pieces(self, module: Any, linear: LinearSpec) -> Iterator[Tensor]:
        """Yield consecutive row ranges (n, K) of an entry that `is_by_rows`; random ones are generated range by
        range."""
        target = f"{linear.name}.weight"
        length, rows = self._readable(target, module, linear)
        for begin, end in row_chunks(length, linear.columns, PIECE_WEIGHTS):
            yield self._finish(target, rows(begin, end), length)

    def _readable(self, target: str, module: Any, linear: LinearSpec) -> tuple[int, Callable[[int, int], Tensor]]:
        """Return the number of rows in the checkpoint, and a function that reads a range of them."""
        if isinstance(self._checkpoint, RandomWeights):
            return linear.rows, partial(self._checkpoint.rows, target)
        stored = self._made(target, module)
        return len(stored), lambda begin, end: stored[begin:end]

    def _whole(self, target: str, module: Any) -> Tensor:
        return self._finish(target, self._made(target, module), 0)

    def _made(self, target: str, module: Any, tensors: Mapping[str, list[Any]] | None = None) -> Tensor:
        """Run transformers' conversion on the given tensors, or on all of the checkpoint's if None."""
        # A conversion consumes its input.
        transform = copy(self._transforms[target])
        transform.collected_tensors = dict(tensors or transform.collected_tensors)
        return _only(transform.convert(target, model=module, config=module.config))

    def _experts(self, target: str, module: Any, count: int) -> Iterator[Tensor]:
        transform = self._transforms[target]
        if isinstance(self._checkpoint, RandomWeights):
            for index in range(count):
                yield self._checkpoint.part(target, index)
        elif _is_by_expert(transform, count):
            for index in range(count):
                # The tensors were collected in the experts' order.
                own = {pattern: [found[index]] for pattern, found in transform.collected_tensors.items()}
                yield self._finish(target, self._made(target, module, own), count)[0]
        else:
            yield from self._whole(target, module)


def parameter_name(module: Any, linear: LinearSpec) -> str:
    """Return the name under which the tree holds the weight of one entry of the plan."""
    owner, _, leaf = linear.name.rpartition(".")
    return f"{linear.name}.weight" if leaf in module.get_submodule(owner)._modules else linear.name


def untied(module: Any, linears: Collection[LinearSpec]) -> set[str]:
    """Return the weights of linears that no other part of the tree shares."""
    tied: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    return {parameter_name(module, linear) for linear in linears} - {*tied, *tied.values()}


def _only(converted: Mapping[str, Any]) -> Tensor:
    (value,) = converted.values()
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor


def _is_by_expert(transform: Any, count: int) -> bool:
    """Return whether each pattern found one tensor per expert, and the steps process experts independently."""
    return merges_experts(transform) and {len(found) for found in transform.collected_tensors.values()} == {count}
