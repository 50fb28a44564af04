"""An input table that stays in the model's file: only the rows that are looked up are converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FileTable(nn.Module):
    """Replaces the module's own table, but keeps its further behaviour (a scale, for example)."""

    def __init__(self, table: Any, rows: Callable[[Tensor], Tensor]) -> None:
        """`rows`: maps ids (n,) to their rows (n, H)."""
        super().__init__()
        self._shape = table.weight.shape
        self._dtype = table.weight.dtype
        self._rows = rows
        table.padding_idx = None  # only used in training, and would have to be among the rows that are looked up
        table._parameters["weight"] = None
        self.table = table

    @property
    def weight(self) -> Any:
        """A table (V, H) of zeros that occupies no memory: only its shape and type are meaningful."""
        return torch.zeros((), dtype=self._dtype).expand(self._shape)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (B, n); return (B, n, H)."""
        self.table._parameters["weight"] = self._rows(ids.flatten())
        found: Tensor = self.table(torch.arange(ids.numel()).view(ids.shape))
        self.table._parameters["weight"] = None
        return found
