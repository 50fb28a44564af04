"""Expert routing for a few rows of input as one native call."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_fields import address, addresses, numbers, reals
from core.kernels.native_library import NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight

KINDS = {"softmax_of_all": 0, "softmax_of_chosen": 1, "sigmoid_of_each": 2}
"""How scores become expert weights: softmax before the choice, softmax over the chosen ones, or a sigmoid of each."""
MOST_EXPERTS = 1024


class _Router(ctypes.Structure):
    """Mirrors `Router` in router.c."""

    _fields_ = (
        *numbers("experts", "hidden", "choices", "kind", "normed", "rounded_scores"),
        *numbers("rounded_shares", "groups", "kept_groups", "group_best"),
        *reals("scale", "eps"),
        *addresses("weight", "wide", "bias", "correction", "gain", "worth"),
    )


@dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighted. `normed`: a row's weights are divided by their sum. `rounded_*`: rounded to
    bf16. Experts are chosen from the best `kept_groups` of `groups`; a group's score is the sum of its `group_best`
    best experts' scores (1 or 2)."""

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
    """`weight` (experts, K) of any storage, and vectors of fp32: `bias` (experts,); `correction` (experts,), added for
    the choice but not for the weights; `gain` (K,) and `eps` of an RMS norm before the product; `worth` (experts,), a
    factor of the expert weights."""

    weight: QuantizedWeight
    bias: Tensor | None = None
    correction: Tensor | None = None
    gain: Tensor | None = None
    eps: float = 0.0
    worth: Tensor | None = None


class NativeRouter:
    """One layer's router. Inputs are contiguous, fp32 or bf16, at most MOST_FEW rows, on the CPU."""

    def __init__(self, library: NativeLibrary, routing: Routing, parts: RouterParts) -> None:
        experts, hidden = parts.weight.shape
        self.routing = routing
        self.library = library
        wide = parts.weight.storage == "fp32"
        rows = None if wide else Parts([(parts.weight, 0, experts)])
        self._held = parts, rows  # keeps alive what the fields point to
        self._fields = _Router(
            experts, hidden, routing.choices, KINDS[routing.kind], routing.normed, routing.rounded_scores,
            routing.rounded_shares, routing.groups, routing.kept_groups, routing.group_best, routing.scale, parts.eps,
            ctypes.addressof(rows.fields) if rows else None, parts.weight.data.data_ptr() if wide else None,
            *map(address, (parts.bias, parts.correction, parts.gain, parts.worth)),
        )  # fmt: skip
        self.experts = experts
        self.address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (M, experts), expert weights (M, k), both fp32, and chosen experts (M, k) for x (M, K)."""
        scores = torch.empty((x.shape[0], self.experts))
        shares = torch.empty((x.shape[0], self.routing.choices))
        chosen = torch.empty((x.shape[0], self.routing.choices), dtype=torch.int64)
        self.library.route(self.address, x, scores, chosen, shares)
        return scores, shares, chosen
