"""Selects what multiplies quantised weights on a device without dequantising them first; each choice is verified there.

NVIDIA and AMD GPUs use our own kernels. Other devices use torch's products with weights of 8 and 4 bits where their
backend has correct ones. Everything else is dequantised and multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.kernels.cuda_dequant import device_kernels
from core.kernels.quantized_weight import QuantizedWeight
from core.kernels.torch_products import TAKEN, torch_int4, torch_int8
from core.spec import LAYOUTS, Storage


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


def device_products(storage: Storage, device: torch.device) -> DeviceProducts | None:
    """Return the products for this storage on `device`; None if the weights must be dequantised first."""
    if device.type == "cuda":
        return device_kernels(device)
    if storage == "int8":
        return torch_int8(device)
    return torch_int4(storage, device) if storage in TAKEN else None


def listed_products(storage: Storage, device: torch.device) -> ListedProducts | None:
    """Return the products of several weights of this storage in one launch on `device`; None without such a kernel."""
    return device_kernels(device) if storage in LAYOUTS and device.type == "cuda" else None
