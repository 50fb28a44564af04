"""The matrices of a filled module tree as the plan names them: one per linear, one per expert of fused ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from core.spec import LinearSpec


def matrix_names(linear: str, experts: int | None) -> list[str]:
    """Return a name for each matrix of one entry of the plan, which has so many experts; None = a linear."""
    return [linear] if experts is None else [f"{linear}.{index}" for index in range(experts)]


def matrices(module: Any, linear: LinearSpec) -> Iterator[Tensor]:
    """Yield the matrices (N, K) of one entry, rows contiguous; views if the stored layout allows it."""
    owner, _, leaf = linear.name.rpartition(".")
    child = module.get_submodule(owner)._modules.get(leaf)
    if child is not None:
        yield child.weight.t().contiguous() if isinstance(child, Conv1D) else child.weight.contiguous()
        return
    experts = module.get_submodule(owner)
    for one in getattr(experts, leaf):
        yield one.t().contiguous() if experts.is_transposed else one.contiguous()


def release(module: Any, linear: LinearSpec) -> None:
    """Remove the tree's parameter of one entry; a table that shares the tensor keeps it."""
    owner, _, leaf = linear.name.rpartition(".")
    holder = module.get_submodule(owner)
    child = holder._modules.get(leaf)
    if child is not None:
        child._parameters["weight"] = None
    else:
        holder._parameters[leaf] = None
