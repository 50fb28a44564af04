"""Selects what multiplies quantised weights on a device without dequantising them first; each choice is verified there.

NVIDIA and AMD GPUs use our own kernels. Other devices use torch's int8 product where their backend has a correct one.
Everything else is dequantised to 16 bits and multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.cuda_dequant import AGREES, MOST_FEW, device_kernels, random_weight
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import LAYOUTS, Storage


class DeviceProducts(Protocol):
    """Products with weights (N, K) that reside on one device."""

    def takes(self, x: Tensor) -> bool:
        """Return whether `product` accepts this input (M, K); other inputs are multiplied with dequantised rows."""

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        """Return x (M, K) times the transposed weight, as (M, N) of any floating type."""

    def widen(self, weight: QuantizedWeight) -> Tensor:
        """Return the dequantised weight as bf16 (N, K)."""


class ListedProducts(Protocol):
    """Products of several weights of one shape and format that reside on one device, in one launch."""

    def entries(self, weights: Sequence[QuantizedWeight], counts: Sequence[int]) -> Tensor:
        """Return the host's list (n, ...) for `products` to read on the device: each weight is for the next `counts`
        rows of x, at most MOST_FEW."""

    def products(self, weights: Sequence[QuantizedWeight], entries: Tensor, x: Tensor) -> Tensor:
        """Return rows of x (M, K), each times the transposed weight of its entry, as (M, N) of any floating type."""


class TorchInt8:
    """torch's product with int8 weights, for 16-bit inputs only: it would round wider ones."""

    def takes(self, x: Tensor) -> bool:
        return x.shape[0] <= MOST_FEW and x.dtype.itemsize == 2

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        assert isinstance(weight.scales, Tensor)
        wide = F.pad(x, (0, weight.data.shape[1] - x.shape[1])).contiguous()
        return torch._weight_int8pack_mm(wide, weight.data, weight.scales.to(x.dtype))

    def widen(self, weight: QuantizedWeight) -> Tensor:
        return weight.dequantize(torch.bfloat16)


def device_products(storage: Storage, device: torch.device) -> DeviceProducts | None:
    """Return the products for this storage on `device`; None if the weights must be dequantised first."""
    if device.type == "cuda":
        return device_kernels(device)
    return TorchInt8() if storage == "int8" and multiplies_int8(device) else None


def listed_products(storage: Storage, device: torch.device) -> ListedProducts | None:
    """Return the products of several weights of this storage in one launch on `device`; None without such a kernel."""
    return device_kernels(device) if storage in LAYOUTS and device.type == "cuda" else None


@cache
def multiplies_int8(device: torch.device) -> bool:
    """Return whether torch's backend for this device has an int8 product with correct results."""
    weight = random_weight("int8", 48, 256, device)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ weight.dequantize(torch.float32).cpu().T
    try:
        found = TorchInt8().product(weight, x.to(device)).float().cpu()
    except RuntimeError:
        return False
    return bool((found - expected).abs().max() <= AGREES * expected.abs().max())
