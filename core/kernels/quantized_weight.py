"""How the weights of one linear lie in memory: row by row, so that any range of rows is a weight by itself.

- bf16: as stored (bf16, fp16 or fp32 keep their type).
- int8: signed bytes (N, columns padded with zeros to 64) and one fp32 scale per row.
- int4: two weights a byte, each value + 8 (N, columns padded to 128, halved); byte i of every 64 holds column i in its
  low half and column 64 + i in its high half; one bf16 scale for each 32 columns.

The same bytes are read by the CPU's kernels, kept on disk, and sent to a device, where plain torch operations widen
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.spec import INT4_COLUMNS, INT4_GROUP, Format

INT4_ZERO = 8


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The weight of one linear, `shape` = (rows N, columns K); `data` and `scales` as the module says."""

    format: Format
    shape: tuple[int, int]
    data: Tensor
    scales: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the weight consists of, each with N rows."""
        return (self.data,) if self.scales is None else (self.data, self.scales)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all parts together."""
        return sum(part[0].numel() * part.element_size() for part in self.tensors)

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.shape[0]

    @property
    def storage(self) -> str:
        """bf16, fp16, fp32, int8 or int4: how a weight really lies in memory."""
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
        return names[self.data.dtype] if self.format == "bf16" else self.format

    def rows(self, begin: int, end: int) -> QuantizedWeight:
        """Rows [begin, end) as views: nothing is copied, and each part is one contiguous range of bytes."""
        scales = None if self.scales is None else self.scales[begin:end]
        return QuantizedWeight(self.format, (end - begin, self.shape[1]), self.data[begin:end], scales)

    def parts(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """The bytes of rows [begin, end), one contiguous tensor for each part, to be laid one behind the other."""
        return self.rows(begin, end).tensors

    def unpack(self, buffer: Tensor, begin: int, end: int) -> QuantizedWeight:
        """Rows [begin, end) out of the bytes of `parts` in `buffer` (uint8, any device), as views."""
        views: list[Tensor] = []
        at = 0
        for part in self.parts(begin, end):
            views.append(buffer[at : at + part.nbytes].view(part.dtype).view(part.shape))
            at += part.nbytes
        return _of(self.format, (end - begin, self.shape[1]), views)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight as (N, K) of `dtype`, on its own device; a view where it is stored so."""
        if self.scales is None:
            return self.data.to(dtype)
        if self.format == "int8":
            return (self.data[:, : self.shape[1]] * self.scales[:, None]).to(dtype)
        return self._dequantize_int4(dtype)

    def _dequantize_int4(self, dtype: torch.dtype) -> Tensor:
        assert self.scales is not None
        rows, columns = self.shape
        pairs = self.data.view(rows, -1, 1, INT4_COLUMNS // 2)
        values = torch.cat((pairs & 15, pairs >> 4), dim=2).view(rows, -1, INT4_GROUP).to(torch.int8) - INT4_ZERO
        wide = values * self.scales.float()[:, :, None]
        return wide.view(rows, -1)[:, :columns].to(dtype)


def _of(format: Format, shape: tuple[int, int], parts: Sequence[Tensor]) -> QuantizedWeight:
    return QuantizedWeight(format, shape, parts[0], parts[1] if len(parts) > 1 else None)
