"""Trials of modules with guessed arguments, which they may refuse, to compare their results with ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
"""Errors of a module that takes other arguments than guessed, or whose attributes differ in number or kind."""
SAME_ROUNDING = 0.97
"""Fraction of bf16 outputs that must match exactly: torch computes the exponential function differently."""
PLAIN_VALUES = (bool, int, float, str, type(None))


def function_key(modules: Iterable[nn.Module], but: Collection[str] = ()) -> str:
    """Return a key that is equal for modules that compute the same function: classes and plain values (`but` these)."""
    return repr([(type(one).__qualname__, sorted(_plain_values(one, but))) for one in modules])


def random_rows(sizes: Sequence[float], columns: int, dtype: torch.dtype) -> Tensor:
    """Return rows (M, columns) of these scales (M,), the same each time."""
    rows = torch.randn(len(sizes), columns, generator=torch.Generator().manual_seed(0))
    return (rows * torch.tensor(sizes)[:, None]).to(dtype)


def near(found: Tensor, expected: Tensor, bound: float) -> bool:
    """Return whether two results (...) differ by at most `bound`, relative to the largest expected element."""
    if found.shape != expected.shape:
        return False
    return bool(((found.float() - expected.float()).abs() <= bound * expected.float().abs().max()).all())


def is_like(found: Tensor, expected: Any) -> bool:
    """Return whether both are tensors (...) of one shape and type."""
    return isinstance(expected, Tensor) and expected.shape == found.shape and expected.dtype is found.dtype


def rounds_alike(found: Tensor, expected: Tensor, share: float = SAME_ROUNDING) -> bool:
    """Return whether at least this share of the elements (...) matches exactly; those in fp32 need not."""
    return found.dtype is torch.float32 or float((found == expected).float().mean()) >= share


def _plain_values(module: nn.Module, but: Collection[str]) -> list[tuple[str, str]]:
    values = vars(module).items()
    return [(name, repr(value)) for name, value in values if name not in but and isinstance(value, PLAIN_VALUES)]
