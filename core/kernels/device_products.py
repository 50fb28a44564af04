"""Selects what multiplies quantised weights on a device without dequantising them first, of what its trial found right.

NVIDIA and AMD GPUs use our own kernels. Other devices use torch's products with weights of 8 and 4 bits where their
backend has correct ones. Everything else is dequantised and multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.kernels.cuda_dequant import DeviceKernels, device_kernels
from core.kernels.quantized_weight import QuantizedWeight
from core.kernels.torch_products import torch_product
from core.spec import LAYOUTS, Abilities, Storage


class DeviceProducts(Protocol):
    """Products with weights (N, K) that reside on one device, N a multiple of `step`."""

    @property
    def step(self) -> int:
        """Return the least number of rows, of which only multiples are multiplied."""

    def takes(self, x: Tensor) -> bool:
        """Return whether `product` accepts this input (M, K); other inputs are multiplied with dequantised rows."""

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        """Return x (M, K) times the transposed weight, as (M, N) of any floating type."""

    def widen(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        """Return the dequantised weight (N, K) in this type; kernels of ours round it to bf16 before."""


class ListedProducts(Protocol):
    """Products of several weights of one shape and format that reside on one device, in one launch."""

    def entries(self, weights: Sequence[QuantizedWeight], counts: Sequence[int]) -> Tensor:
        """Return the host's list (n, ...) for `products` to read on the device: each weight is for the next `counts`
        rows of x, at most MOST_FEW."""

    def products(self, weights: Sequence[QuantizedWeight], entries: Tensor, x: Tensor) -> Tensor:
        """Return rows of x (M, K), each times the transposed weight of its entry, as (M, N) of any floating type."""


class CardProducts:
    """The products on one device. Without abilities, there are none: nothing runs here for the first time."""

    def __init__(self, device: torch.device, abilities: Abilities) -> None:
        self._device = device
        self._own_kernels = abilities.own_kernels
        self._found = {one.storage: one for one in abilities.products}
        self._made: dict[Storage, DeviceProducts] = {}

    def of(self, storage: Storage) -> DeviceProducts | None:
        """Return the products for this storage; None if the weights must be dequantised first."""
        if (kernels := self.kernels(storage)) is not None:
            return kernels
        if storage not in self._made and (found := self._found.get(storage)):
            self._made[storage] = torch_product(found, self._device)
        return self._made.get(storage)

    def kernels(self, storage: Storage) -> DeviceKernels | None:
        """Return our own kernels, which also multiply several weights of this storage in one launch; None without."""
        return device_kernels(self._device) if self._own_kernels and storage in LAYOUTS else None
