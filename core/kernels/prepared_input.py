"""The input of CPU linears, converted once for all weights that read it (q, k and v; gate and up)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.kernels.column_order import ColumnOrder
from core.kernels.native_abi import TYPES
from core.kernels.native_library import MOST_FEW, NativeLibrary


class HostInput:
    """An input `x` (M, K) of fp32, bf16 or fp16, with a cache of its conversions."""

    __slots__ = ("_as", "_ordered", "_prepared", "columns", "dtype", "rows", "x")

    def __init__(self, x: Tensor) -> None:
        """`x` (..., K): leading dimensions are flattened into one."""
        assert x.dtype in TYPES
        self.x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if self.x.stride(1) != 1:
            self.x = self.x.contiguous()
        self.rows: int = self.x.shape[0]
        self.columns: int = self.x.shape[1]
        self.dtype = x.dtype
        self._as: dict[torch.dtype, Tensor] = {self.dtype: self.x}
        self._prepared: dict[tuple[str, int], Tensor] = {}
        self._ordered: dict[ColumnOrder, HostInput] = {}

    def to(self, dtype: torch.dtype) -> Tensor:
        """Return `x` (M, K) as `dtype`."""
        if dtype not in self._as:
            self._as[dtype] = self.x.to(dtype)
        return self._as[dtype]

    def ordered(self, order: ColumnOrder | None) -> HostInput:
        """Return the input (M, K) with its columns in this order; computed once for all weights that share it."""
        if order is None:
            return self
        if order not in self._ordered:
            # index_select is faster for few rows, advanced indexing for many.
            columns = order.columns
            self._ordered[order] = HostInput(
                self.x.index_select(1, columns) if self.rows <= MOST_FEW else self.x[:, columns]
            )
        return self._ordered[order]

    def prepared(self, library: NativeLibrary, storage: str) -> Tensor:
        """Return the input (M, K) in the layout of the library's kernels for `storage`."""
        key = (library.instruction_set, library.input_kind(storage, self.rows, self.dtype))
        if key not in self._prepared:
            self._prepared[key] = library.prepare(self.x, key[1])
        return self._prepared[key]
