"""One linear's weight in host memory: multiplied there in any range of rows, or sent to the device in that range.

The whole weight always stays here, so that any division of its rows can be changed between two passes at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.coarse_head import CoarseHead
from core.kernels.device_products import device_products
from core.kernels.matmul import BatchedMatmul, ChosenMatmul
from core.kernels.native_library import NativeLibrary
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import QUANTUM, READ_AGAIN, bucket
from core.units import MIB

WIDENED_BYTES = 32 * MIB
"""What widening quantised rows on the device may take of its memory at a time, about twice: the plan counts on it."""


class HostWeight:
    """A weight of `rows` x `columns` (N x K). Ranges begin at multiples of `quantum`."""

    def __init__(
        self, matmul: ChosenMatmul, dtype: torch.dtype = torch.bfloat16, copy: ChosenMatmul | None = None
    ) -> None:
        """`dtype`: what the model computes in; `copy`: of an output head, in fewer bits."""
        self._matmul = matmul
        self._dtype = dtype
        self.copied = None if copy is None else CoarseHead(matmul, copy, READ_AGAIN)
        self.weight = matmul.weight
        self.rows, self.columns = matmul.rows, matmul.columns
        self.quantum = QUANTUM
        self.row_bytes = self.weight.row_bytes
        self._cuts: dict[tuple[int, int], HostWeight] = {}

    def matmul(self, x: HostInput, begin: int, end: int) -> Tensor:
        """(M, K) -> (M, end - begin) on the host, in x's type."""
        return self._matmul(x, begin, end)

    def library(self, rows: int) -> NativeLibrary | None:
        """Our library, if it multiplies this many rows of input."""
        return self._matmul.by_bucket[bucket(rows)].library

    @staticmethod
    def together(weights: Sequence[HostWeight], begins: Sequence[int] = ()) -> BatchedMatmul:
        """What multiplies several weights, from these rows on, with one input, in one run where the kernels allow
        it."""
        return BatchedMatmul([weight._matmul for weight in weights], begins)

    def cut(self, begin: int, end: int) -> HostWeight:
        """Columns [begin, end) as a weight of its own, which is kept: hardly more than some scales is copied for it."""
        if (begin, end) not in self._cuts:
            self._keep(begin, end, self.weight.cut(begin, end))
        return self._cuts[begin, end]

    def copy_columns(self, begin: int) -> None:
        """Let those from `begin` on lie beside each other, so that a few rows of input are multiplied with them as fast
        as with a weight that was not cut: the processor reads ahead what does not belong to them otherwise."""
        cut = self.weight.cut(begin, self.columns)
        self._keep(begin, self.columns, replace(cut, data=cut.data.contiguous()))

    def _keep(self, begin: int, end: int, cut: QuantizedWeight) -> None:
        self._cuts[begin, end] = HostWeight(ChosenMatmul(cut, self._matmul.by_bucket), self._dtype)

    def forget_cuts(self) -> None:
        """Let go of the parts that were cut."""
        self._cuts.clear()

    def whole(self) -> Tensor:
        """(N, K) as numbers of the type that the model computes in: a view where it is stored so."""
        return self.weight.dequantize(self._dtype)

    def parts(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """The rows' bytes as contiguous host tensors (rows, ...), to be laid end to end."""
        return self.weight.parts(begin, end)

    def on_device(self, buffer: Tensor, begin: int, end: int) -> DeviceRows:
        """The same rows from a buffer (nbytes,) on the device that holds `parts` end to end."""
        rows = self.weight.unpack(buffer, begin, end)
        # A simulated device's memory is RAM, and it is as fast as the processor only with the processor's kernels.
        matmul = ChosenMatmul(rows, self._matmul.by_bucket) if buffer.device.type == "cpu" else None
        return DeviceRows(rows, matmul)


def common_library(weights: Sequence[HostWeight], rows: int) -> NativeLibrary | None:
    """The library that multiplies so many rows of input with all of them, None where one is not multiplied by ours, or
    not with the input as it is.

    Where different instruction sets were found to be fastest, which differ by little, it is the one for most bytes.
    """
    nbytes: dict[NativeLibrary | None, int] = {}
    for weight in weights:
        library = weight.library(rows) if weight.weight.order is None else None
        nbytes[library] = nbytes.get(library, 0) + weight.weight.nbytes
    return None if None in nbytes else max(nbytes, key=nbytes.__getitem__)


DeviceInput = Tensor | HostInput
"""(M, K) on the device; as the host's kernels want it where the device's memory is the host's."""


def device_input(x: Tensor) -> DeviceInput:
    """What all rows on the device that read `x` (M, K) can share."""
    return HostInput(x) if x.device.type == "cpu" else x


class DeviceRows:
    """Rows of a weight that lie on the device, in the same bytes as on the host."""

    def __init__(self, weight: QuantizedWeight, matmul: ChosenMatmul | None = None) -> None:
        """`matmul`: the host's kernels, where the device's memory is the host's."""
        device = weight.data.device
        self.weight = weight if matmul else replace(weight, order=None)
        self.rows = weight.shape[0]
        self._matmul = matmul
        self._order = None if weight.order is None else weight.order.on(device)
        # Asked for here, so that they are compiled while the model loads and not in its first reply.
        self._products = None if weight.format == "bf16" or matmul else device_products(weight.format, device)

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
        if self._products is not None and self._products.takes(x):
            return self._products.product(self.weight, x)
        y = x.new_empty(x.shape[0], self.rows)
        for begin in range(0, self.rows, chunk := self._chunk_rows()):
            end = min(begin + chunk, self.rows)
            y[:, begin:end] = F.linear(x, self._widen(begin, end, x.dtype))
        return y

    def _widen(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        rows = self.weight.rows(begin, end)
        return rows.dequantize(dtype) if self._products is None else self._products.widen(rows).to(dtype)

    def _chunk_rows(self) -> int:
        """Rows that may be widened at a time: some of the steps of it hold 4 bytes for each weight."""
        return max(16, WIDENED_BYTES // (4 * self.weight.shape[1]))
