"""An input table that stays in the model's file: of its rows those are made numbers that are looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FileTable(nn.Module):
    """Stands in for the module's own table, which keeps what else it does (a scale, for one)."""

    def __init__(self, table: Any, rows: Callable[[Tensor], Tensor]) -> None:
        """`rows`: ids (n,) -> their rows (n, H)."""
        super().__init__()
        self._shape = table.weight.shape
        self._dtype = table.weight.dtype
        self._rows = rows
        table.padding_idx = None  # matters to training only, and would have to be among the rows looked up
        table._parameters["weight"] = None
        self.table = table

    @property
    def weight(self) -> Any:
        """A table (V, H) of zeros that takes no memory: only its shape and type are true."""
        return torch.zeros((), dtype=self._dtype).expand(self._shape)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, H)"""
        self.table._parameters["weight"] = self._rows(ids.flatten())
        found: Tensor = self.table(torch.arange(ids.numel()).view(ids.shape))
        self.table._parameters["weight"] = None
        return found
