"""Codes with scales: the common form of every quantised weight, whatever its tensors are called in the file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.kernels.column_order import ColumnOrder
from core.kernels.quantized_weight import QuantizedWeight, empty, pack
from core.spec import LAYOUTS, Storage
from core.weights.row_chunks import row_chunks


@dataclass(frozen=True, eq=False)
class Coded:
    """w = scale * (code - zero), or scale * book[code]; `codes` (N, K) are bytes or float8.

    `scales` and `zeros` are fp32, one per `block` of rows and columns. `order` (K,): the group of each column, if the
    columns of a group are not adjacent; packed, they are. `unit`: what one step of the engine's code book is worth in
    `book`. `storage`: the storage that keeps the weight (without rounding again, except for ROUNDED ones); None if
    there is none. `flat`: only the number of weights is known yet, so the shape is a single row.
    """

    codes: Tensor
    scales: Tensor
    block: tuple[int, int]
    zeros: Tensor | None = None
    book: Tensor | None = None
    order: Tensor | None = None
    unit: float = 1.0
    storage: Storage | None = None
    flat: bool = False

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as (N, K) of `dtype`, dequantised in fp32."""
        rows, columns = self.codes.shape
        result = torch.empty((rows, columns), dtype=dtype)
        for begin, end in row_chunks(rows, columns):
            result[begin:end] = self._values(begin, end) * self._spread(self.scales, begin, end)
        return result

    def packed(self, storage: Storage) -> QuantizedWeight:
        """Return the weight in a storage that keeps its codes; FP8 without a copy if its width needs no padding."""
        rows, columns = self.codes.shape
        if LAYOUTS[storage].floats and columns % LAYOUTS[storage].width == 0:
            return self._pack(storage, 0, rows)
        result = replace(empty(storage, rows, columns), order=self._column_order())
        for begin, end in row_chunks(rows, columns):
            part = self._pack(storage, begin, end)
            for target, source in zip(result.rows(begin, end).tensors, part.tensors, strict=True):
                target.copy_(source)
        return result

    def _pack(self, storage: Storage, begin: int, end: int) -> QuantizedWeight:
        layout = LAYOUTS[storage]
        codes = self.codes[begin:end]
        scales = self._by_group(self.scales, layout.group, begin, end) * self.unit
        if layout.minimum:
            assert self.zeros is not None
            # Exact in fp32, because both factors have few significant bits.
            codes = self._in_order(codes)
            return pack(storage, codes, scales, -scales * self._by_group(self.zeros, layout.group, begin, end))
        if self.zeros is not None:
            codes = (codes.to(torch.int16) - self._spread(self.zeros, begin, end).to(torch.int16)).to(torch.int8)
        return pack(storage, self._in_order(codes), scales)

    def _column_order(self) -> ColumnOrder | None:
        order = self._stored_order()
        return None if order is None else ColumnOrder(order)

    def _stored_order(self) -> Tensor | None:
        """Return the columns sorted by group; None if they are stored in that order."""
        return None if self.order is None else self.order.argsort(stable=True)

    def _in_order(self, codes: Tensor) -> Tensor:
        order = self._stored_order()
        return codes if order is None else codes[:, order]

    def _values(self, begin: int, end: int) -> Tensor:
        codes = self.codes[begin:end]
        if self.book is not None:
            return self.book[codes.int()]
        return codes.float() if self.zeros is None else codes.float() - self._spread(self.zeros, begin, end)

    def _spread(self, each: Tensor, begin: int, end: int) -> Tensor:
        """Expand block values to one per weight of these rows."""
        columns = torch.arange(self.codes.shape[1]) // self.block[1] if self.order is None else self.order
        return each[torch.arange(begin, end) // self.block[0]][:, columns]

    def _by_group(self, each: Tensor, group: int, begin: int, end: int) -> Tensor:
        """Expand block values to one per group of `group` columns of these rows (0 = the whole row)."""
        first = torch.arange(0, self.codes.shape[1], group or self.codes.shape[1]) // self.block[1]
        return each[torch.arange(begin, end) // self.block[0]][:, first]
