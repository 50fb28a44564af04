"""The choice of experts for a few rows of input in one call of our library."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_library import NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight

KINDS = {"softmax_of_all": 0, "softmax_of_chosen": 1, "sigmoid_of_each": 2}
"""What makes shares of the scores, and whether before or after the choice."""
MOST_EXPERTS = 1024

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _Router(ctypes.Structure):
    """`Router` of router.c."""

    _fields_ = (
        *((name, _INT) for name in ("experts", "hidden", "choices", "kind", "normed", "rounded_scores")),
        *((name, _INT) for name in ("rounded_shares", "groups", "kept_groups", "group_best")),
        *((name, ctypes.c_double) for name in ("scale", "eps")),
        *((name, _ADDRESS) for name in ("weight", "wide", "bias", "correction", "gain", "worth")),
    )


@dataclass(frozen=True)
class Routing:
    """How shares are made. `normed`: those of a row are divided by their sum; the rounding is to bf16; experts are
    chosen in the best `kept_groups` of `groups`, each of which counts as its `group_best` best experts (1 or 2)."""

    kind: str
    choices: int
    normed: bool
    rounded_scores: bool
    rounded_shares: bool
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 2


@dataclass(frozen=True, eq=False)
class RouterParts:
    """`weight` (experts, K) of any storage, and vectors of fp32: `bias` and `correction` (experts,); the second counts
    for the choice and not for the shares; `gain` (K,) of a root-mean-square norm before, with `eps`; `worth`
    (experts,) that shares are multiplied with."""

    weight: QuantizedWeight
    bias: Tensor | None = None
    correction: Tensor | None = None
    gain: Tensor | None = None
    eps: float = 0.0
    worth: Tensor | None = None


class NativeRouter:
    """One layer's choice of experts. Inputs are contiguous, of fp32 or bf16, at most FEW_ROWS rows, on the CPU."""

    def __init__(self, library: NativeLibrary, routing: Routing, parts: RouterParts) -> None:
        experts, hidden = parts.weight.shape
        self.routing = routing
        self.library = library
        wide = parts.weight.storage == "fp32"
        rows = None if wide else Parts([(parts.weight, 0, experts)])
        self._held = parts, rows  # their addresses are in the fields
        self._fields = _Router(
            experts, hidden, routing.choices, KINDS[routing.kind], routing.normed, routing.rounded_scores,
            routing.rounded_shares, routing.groups, routing.kept_groups, routing.group_best, routing.scale, parts.eps,
            ctypes.addressof(rows.fields) if rows else None, parts.weight.data.data_ptr() if wide else None,
            *map(_address, (parts.bias, parts.correction, parts.gain, parts.worth)),
        )  # fmt: skip
        self.experts = experts
        self.address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (M, K) -> scores (M, experts) and shares (M, k) of fp32, chosen experts (M, k)."""
        scores = torch.empty((x.shape[0], self.experts))
        shares = torch.empty((x.shape[0], self.routing.choices))
        chosen = torch.empty((x.shape[0], self.routing.choices), dtype=torch.int64)
        self.library.route(self.address, x, scores, chosen, shares)
        return scores, shares, chosen


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
