"""The held experts of a layer with few tokens each, computed in one kernel launch per product.

    pairs of token and expert, by expert -> up of all (one launch) -> gate -> down of all (one launch) -> added up

The weights' addresses are listed anew for each pass and copied with the pairs, so that the set of held experts may
change between two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.kernels.cuda_dequant import MOST_FEW
from core.kernels.device_products import ListedProducts
from core.kernels.quantized_weight import QuantizedWeight
from core.offload.hetero_linear import HeteroLinear


class Routed(NamedTuple):
    """A layer's work in a pass: rows x (M, K), the `numbers` of their experts (M, k) with `shares` (M, k), and the sum.

    `out` (M, K): the fp32 sum to which each expert adds its part. The numbers are on the host, all else on the device.
    """

    x: Tensor
    numbers: Tensor
    shares: Tensor
    out: Tensor

    def places(self, expert: int) -> tuple[Tensor, ...]:
        """Return the rows (n,) that chose an expert, and which of each row's choices it is (n,), on the host."""
        return torch.where(self.numbers == expert)

    def add(self, y: Tensor, rows: Tensor, choices: Tensor) -> None:
        """Add the results y (n, K) for these rows (n,), which made these choices (n,); all on the device."""
        self.out.index_add_(0, rows, (y * self.shares[rows, choices, None]).float())


@dataclass(frozen=True)
class HeldAtOnce:
    """`linears`: of each product, by expert; `products`: their kernels; `gate`: the function between the two
    products."""

    linears: Sequence[Sequence[HeteroLinear]]
    products: Sequence[ListedProducts]
    gate: Callable[[Tensor], Tensor]
    accelerator: Accelerator

    def takes(self, tokens: int) -> bool:
        """Return whether an expert with so many tokens can be computed at once with others."""
        return tokens <= MOST_FEW

    def launch(self, experts: Sequence[int], routed: Routed, nbytes: int) -> None:
        """Add the parts of these `experts`, of so many bytes."""
        places = [routed.places(expert) for expert in experts]
        rows_here, choices_here = (torch.cat(parts) for parts in zip(*places, strict=True))
        counts = [len(rows) for rows, _ in places]
        chosen = [self._rows(number, experts, counts) for number in range(len(self.linears))]
        lists = [one.entries for one in chosen]
        up_list, down_list, rows, choices = self.accelerator.together_to_device([*lists, rows_here, choices_here])
        up, down = chosen

        def compute() -> None:
            routed.add(down(self.gate(up(routed.x[rows], up_list)), down_list), rows, choices)

        self.accelerator.launch(compute, nbytes)

    def _rows(self, number: int, experts: Sequence[int], counts: Sequence[int]) -> _Listed:
        linears = [self.linears[number][expert] for expert in experts]
        return _Listed(self.products[number], linears, counts)


class _Listed:
    """One product of the chosen experts, with `counts` pairs each."""

    def __init__(self, products: ListedProducts, linears: Sequence[HeteroLinear], counts: Sequence[int]) -> None:
        self._products = products
        self._weights = [one.resident.weight for one in linears if one.resident is not None]
        assert len(self._weights) == len(linears), "only what is held is computed"
        self.entries = products.entries(self._weights, counts)
        pairs = zip(linears, counts, strict=True)
        self._biases = [one.bias for one, count in pairs for _ in range(count) if one.bias is not None]

    def __call__(self, x: Tensor, entries: Tensor) -> Tensor:
        """x (pairs, K) -> (pairs, N), in x's type; `entries` is the device's copy of the list."""
        y = self._products.products(self._weights, entries, x)
        return (y + torch.stack(self._biases) if self._biases else y).to(x.dtype)


def held_at_once(
    linears: Sequence[Sequence[HeteroLinear]], gate: Callable[[Tensor], Tensor], accelerator: Accelerator
) -> HeldAtOnce | None:
    """Return what computes held experts at once on this device, with `gate` from (pairs, N) to (pairs, K).

    None if there is no kernel for all of their products.
    """
    products = [_products_of([one.host.weight for one in group], accelerator) for group in linears]
    found = [one for one in products if one is not None]
    return HeldAtOnce(linears, found, gate, accelerator) if len(found) == len(linears) else None


def _products_of(weights: Sequence[QuantizedWeight], accelerator: Accelerator) -> ListedProducts | None:
    formats = {weight.format for weight in weights}
    alike = len(formats) == 1 and all(weight.order is None for weight in weights)
    return accelerator.listed(formats.pop()) if alike else None
