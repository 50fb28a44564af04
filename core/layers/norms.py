"""RMS norms, and layer norms without a bias, in one call of our library instead of torch's seven small operations.

Every architecture has its own class for the same few lines. Modules are recognised by trying: one is replaced only if
ours gives the same results as its own forward with its own weight. On a device the module's own forward runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_layer import NormParts
from core.kernels.native_library import NativeLibrary, native
from core.layers.trials import MISFITS, is_like, random_rows, rounds_alike

TRIED_SIZES = (1e-3, 0.1, 1.0, 30.0)
"""Scales of the trial inputs: small ones reveal the epsilon, large ones that nothing is clipped."""
SAME_ROUNDING = 0.99
"""Fraction of bf16 outputs that must match exactly: if rounding takes place elsewhere, a quarter differs."""


class NativeRMSNorm(nn.Module):
    """Replaces `original`, and calls it for inputs that are not handled here."""

    def __init__(self, original: nn.Module, library: NativeLibrary, parts: NormParts) -> None:
        super().__init__()
        self.original = original
        self.dtype = next(original.parameters()).dtype
        self.parts = parts
        self._compute = library.rms_norm

    @property
    def weight(self) -> Any:
        """Return the original's weight, wherever it lies now."""
        return next(self.original.parameters())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(..., K) -> (..., K)."""
        if args or kwargs or x.device.type != "cpu" or x.dtype is not self.dtype or not x.is_contiguous():
            return self.original(x, *args, **kwargs)
        parts = self.parts
        return self._compute(x, parts.gain, parts.eps, rounded=parts.rounded, centred=parts.centred)


def adopt(root: nn.Module) -> None:
    """Replace all such norms in a loaded tree on the CPU."""
    library = native()
    if library is None:
        return
    owners = [owner for owner in root.modules() if not isinstance(owner, NativeRMSNorm)]
    for owner in owners:
        for name, child in owner.named_children():
            if (found := recognise(child, library)) is not None:
                owner._modules[name] = found


@torch.inference_mode()
def recognise(module: nn.Module, library: NativeLibrary) -> NativeRMSNorm | None:
    """Return our replacement for `module` if both compute the same, otherwise None."""
    if not _may_be_norm(module):
        return None
    weight = next(module.parameters())
    x = random_rows(TRIED_SIZES, weight.shape[0], weight.dtype)
    try:
        expected = module(x)
    except MISFITS:  # it does not take (M, K), or also takes a gate
        return None
    same = (one for one in _candidates(module, weight, library) if _agree(one(x), expected, centred=one.parts.centred))
    return next(same, None)


@torch.inference_mode()
def without_gain(module: nn.Module, columns: int, dtype: torch.dtype) -> NormParts | None:
    """Return the parameters of a norm without weights for rows of so many columns; None if it is not an RMS norm."""
    library = native()
    if library is None or next(module.parameters(), None) is not None:
        return None
    gain = torch.ones(columns)
    x = random_rows(TRIED_SIZES, columns, dtype)
    try:
        expected = module(x)
    except MISFITS:
        return None
    floats = [value for value in vars(module).values() if isinstance(value, float)]
    candidates = (NormParts(gain, eps, rounded) for eps in floats for rounded in (True, False))
    same = (one for one in candidates if _agree(library.rms_norm(x, gain, one.eps, rounded=one.rounded), expected))
    return next(same, None)


def _may_be_norm(module: nn.Module) -> bool:
    """Return whether the module has a single weight vector and nothing else, and its forward takes one tensor."""
    held = list(module.parameters())
    if len(held) != 1 or held[0].dim() != 1 or any(True for _ in (*module.buffers(), *module.children())):
        return False
    asked = inspect.signature(module.forward).parameters.values()
    needed = [one for one in asked if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return held[0].device.type == "cpu" and held[0].dtype in (torch.float32, torch.bfloat16) and len(needed) == 1


def _candidates(module: nn.Module, weight: Tensor, library: NativeLibrary) -> Iterator[NativeRMSNorm]:
    """Yield candidates: any float attribute of the module may be the epsilon."""
    for eps in {value for value in vars(module).values() if isinstance(value, float)}:
        for centred, offset, rounded in product((False, True), (0.0, 1.0), (True, False)):
            yield NativeRMSNorm(module, library, NormParts(weight.float() + offset, eps, rounded, centred))


def _agree(found: Tensor, expected: Any, *, centred: bool = False) -> bool:
    if not is_like(found, expected):
        return False
    eps = torch.finfo(found.dtype).eps
    # What lies near the mean has lost digits before.
    close = torch.allclose(found.float(), expected.float(), rtol=8 * eps, atol=8 * eps if centred else 0)
    return close and rounds_alike(found, expected, SAME_ROUNDING)
