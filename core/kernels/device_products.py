"""What multiplies quantised rows on a device without widening them first, chosen by trial.

Our own kernels on NVIDIA's and AMD's cards; on others torch's product with weights of eight bits, where their backend
has one that is right. Everything else is widened to 16 bits and multiplied.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.cuda_dequant import AGREES, MOST_ROWS, device_kernels, random_weight
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import Storage


class DeviceProducts(Protocol):
    """Products with weights (N, K) that lie on one device."""

    def takes(self, x: Tensor) -> bool:
        """Whether `product` is made for an input like this (M, K); others are multiplied with widened rows."""

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        """x (M, K) times the weight: (M, N) of any floating type."""

    def widen(self, weight: QuantizedWeight) -> Tensor:
        """The weight as bf16 (N, K)."""


class TorchInt8:
    """torch's product with int8 rows, for inputs of 16 bits: wider ones would be rounded."""

    def takes(self, x: Tensor) -> bool:
        return x.shape[0] <= MOST_ROWS and x.dtype.itemsize == 2

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        assert isinstance(weight.scales, Tensor)
        wide = F.pad(x, (0, weight.data.shape[1] - x.shape[1])).contiguous()
        return torch._weight_int8pack_mm(wide, weight.data, weight.scales.to(x.dtype))

    def widen(self, weight: QuantizedWeight) -> Tensor:
        return weight.dequantize(torch.bfloat16)


def device_products(storage: Storage, device: torch.device) -> DeviceProducts | None:
    """The products for rows of this kind there; None where widening them first is all there is."""
    if device.type == "cuda":
        return device_kernels(device)
    return TorchInt8() if storage == "int8" and multiplies_int8(device) else None


@cache
def multiplies_int8(device: torch.device) -> bool:
    """Whether the device's backend of torch has a product with int8 rows, and it is right."""
    weight = random_weight("int8", 48, 256, device)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ weight.dequantize(torch.float32).cpu().T
    try:
        found = TorchInt8().product(weight, x.to(device)).float().cpu()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((found - expected).abs().max() <= AGREES * expected.abs().max())
