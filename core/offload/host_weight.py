"""One linear's weight in host memory: any range of its rows can be multiplied there or copied to the device.

The whole weight always stays in host memory, so that the split can change between two passes at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.accelerators.base import Accelerator
from core.kernels.coarse_head import CoarseHead
from core.kernels.device_products import DeviceProducts
from core.kernels.matmul import BatchedMatmul, ChosenMatmul
from core.kernels.native_library import NativeLibrary
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import QUANTUM, READ_AGAIN, bucket
from core.units import MIB

WIDENED_BYTES = 32 * MIB
"""Bound on the temporary memory for widening quantised rows on the device, to about a factor of 2. The plan reserves
it."""
DEVICE_ALIGNMENT = 16
"""Bytes that kernels for cards read at a time."""


class HostWeight:
    """A weight of `rows` x `columns` (N x K). Ranges of rows begin at multiples of `quantum`."""

    def __init__(
        self, matmul: ChosenMatmul, dtype: torch.dtype = torch.bfloat16, copy: ChosenMatmul | None = None
    ) -> None:
        """`dtype`: the compute type of the model; `copy`: a copy of an output head at fewer bits."""
        self._matmul = matmul
        self.dtype = dtype
        self.copied = None if copy is None else CoarseHead(matmul, copy, READ_AGAIN)
        self.weight = matmul.weight
        self.rows, self.columns = self.shape = matmul.rows, matmul.columns
        self.quantum = QUANTUM
        self.row_bytes = self.weight.row_bytes
        self._cuts: dict[tuple[int, int], HostWeight] = {}

    def matmul(self, x: HostInput, begin: int, end: int) -> Tensor:
        """(M, K) -> (M, end - begin) on the host, in x's type."""
        return self._matmul(x, begin, end)

    def library(self, rows: int) -> NativeLibrary | None:
        """Return our library if it multiplies this many input rows with the weight."""
        return self._matmul.by_bucket[bucket(rows)].library

    @staticmethod
    def together(weights: Sequence[HostWeight], begins: Sequence[int] = ()) -> BatchedMatmul:
        """Return a product of one input with several weights, each from its begin row on, batched if the kernels
        can."""
        return BatchedMatmul([weight._matmul for weight in weights], begins)

    def after(self, row: int) -> HostWeight:
        """Return the rows from `row` on as a weight of their own, which shares its memory."""
        return HostWeight(ChosenMatmul(self.weight.rows(row, self.rows), self._matmul.by_bucket), self.dtype)

    def cut(self, begin: int, end: int) -> HostWeight:
        """Return columns [begin, end) as a weight, which is cached; little more than some scales is copied for it."""
        if (begin, end) not in self._cuts:
            self._keep(begin, end, self.weight.cut(begin, end))
        return self._cuts[begin, end]

    def copy_columns(self, begin: int) -> None:
        """Make a contiguous copy of the columns from `begin` on, so that few input rows multiply at full speed.

        In a strided view the hardware prefetcher would also read the columns in between.
        """
        cut = self.weight.cut(begin, self.columns)
        self._keep(begin, self.columns, replace(cut, data=cut.data.contiguous()))

    def _keep(self, begin: int, end: int, cut: QuantizedWeight) -> None:
        self._cuts[begin, end] = HostWeight(ChosenMatmul(cut, self._matmul.by_bucket), self.dtype)

    def forget_cuts(self) -> None:
        """Drop the cached cuts."""
        self._cuts.clear()

    @property
    def is_plain(self) -> bool:
        """Return whether the weight is stored in the model's compute type."""
        return self.weight.scales is None and self.weight.data.dtype is self.dtype

    def whole(self) -> Tensor:
        """Return (N, K) in the model's compute type; a view if the weight is stored in it."""
        return self.weight.dequantize(self.dtype)

    def parts(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """Return the rows' bytes as contiguous host tensors (rows, ...), to be packed end to end."""
        return self.weight.parts(begin, end)

    def in_place(self, accelerator: Accelerator, begin: int, end: int) -> DeviceRows | None:
        """Return the rows where they lie, as tensors of the device.

        None if they are no contiguous, aligned range of bytes.
        """
        rows = self.weight.rows(begin, end)
        if not _is_aligned(rows.data):
            return None
        share = accelerator.in_place
        scales = None if rows.scales is None else share(rows.scales)
        return DeviceRows(replace(rows, data=share(rows.data), scales=scales), accelerator.products(rows.format))

    def on_device(self, accelerator: Accelerator, buffer: Tensor, begin: int, end: int) -> DeviceRows:
        """Return the rows from a device buffer (nbytes,) that holds their `parts` end to end."""
        rows = self.weight.unpack(buffer, begin, end)
        # A simulated device's memory is RAM; only the CPU's kernels make it as fast as the CPU.
        matmul = ChosenMatmul(rows, self._matmul.by_bucket) if buffer.device.type == "cpu" else None
        return DeviceRows(rows, accelerator.products(rows.format), matmul)


def _is_aligned(data: Tensor) -> bool:
    """Return whether a weight's numbers (rows, ...) can be read where they lie by kernels for cards."""
    return data.is_contiguous() and (data.is_floating_point() or data.data_ptr() % DEVICE_ALIGNMENT == 0)


def common_library(weights: Sequence[HostWeight], rows: int) -> NativeLibrary | None:
    """Return the library that multiplies so many input rows with all weights.

    None if one of them is not multiplied by ours, or reorders its input. If different instruction sets were measured as
    fastest, which differ little, returns the one for most bytes.
    """
    nbytes: dict[NativeLibrary | None, int] = {}
    for weight in weights:
        library = weight.library(rows) if weight.weight.order is None else None
        nbytes[library] = nbytes.get(library, 0) + weight.weight.nbytes
    return None if None in nbytes else max(nbytes, key=nbytes.__getitem__)


DeviceInput = Tensor | HostInput
"""(M, K) on the device; prepared for the host's kernels if the device's memory is RAM."""


def device_input(x: Tensor) -> DeviceInput:
    """Return `x` (M, K) in the form that all rows on the device can share."""
    return HostInput(x) if x.device.type == "cpu" else x


class DeviceRows:
    """Rows of a weight on the device, in the same byte layout as on the host."""

    def __init__(
        self, weight: QuantizedWeight, products: DeviceProducts | None = None, matmul: ChosenMatmul | None = None
    ) -> None:
        """`products`: what multiplies it as it lies; `matmul`: the host's kernels, if the device's memory is RAM."""
        device = weight.data.device
        self.weight = weight if matmul else replace(weight, order=None)
        self.rows = weight.shape[0]
        self._matmul = matmul
        self._order = None if weight.order is None else weight.order.on(device)
        self._products = products

    def linear(self, x: DeviceInput, bias: Tensor | None = None) -> Tensor:
        """(M, K) times the rows, plus bias (rows,) -> (M, rows), on the device, in x's type."""
        if self._matmul is not None:
            y = self._matmul(x)
        else:
            assert isinstance(x, Tensor)
            if self.weight.format == "bf16":
                return F.linear(x, self.weight.dequantize(x.dtype), bias)
            y = self._product(x if self._order is None else x[:, self._order])
        return (y if bias is None else y + bias).to(x.dtype)

    def _product(self, x: Tensor) -> Tensor:
        products = self._products if self._products is not None and self._products.takes(x) else None
        direct = 0 if products is None else self.rows // products.step * products.step
        if products is not None and direct == self.rows:
            return products.product(self.weight, x)
        y = x.new_empty(x.shape[0], self.rows)
        if products is not None and direct:
            y[:, :direct] = products.product(self.weight.rows(0, direct), x)
        for begin in range(direct, self.rows, chunk := self._chunk_rows()):
            end = min(begin + chunk, self.rows)
            y[:, begin:end] = F.linear(x, self._widen(begin, end, x.dtype))
        return y

    def _widen(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        rows = self.weight.rows(begin, end)
        return rows.dequantize(dtype) if self._products is None else self._products.widen(rows, dtype)

    def _chunk_rows(self) -> int:
        """Return how many rows to widen at a time: some intermediate steps take 4 bytes per weight."""
        return max(16, WIDENED_BYTES // (4 * self.weight.shape[1]))
