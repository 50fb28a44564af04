"""The order in which a program quantised a weight's columns (GPTQ's act-order), where that is not their own."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor


class ColumnOrder:
    """`columns` (K,), int64 on the host: which column of the weight each stored one is. Orders of the same columns are
    equal wherever they were read from, so that weights with one input (q, k and v) can share it in their order."""

    __slots__ = ("_digest", "_places", "columns")

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns
        self._digest = sha256(columns.contiguous().numpy().data).digest()
        self._places: dict[torch.device, Tensor] = {columns.device: columns}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ColumnOrder) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def on(self, device: torch.device) -> Tensor:
        """The columns (K,) on a device, copied there once."""
        if device not in self._places:
            self._places[device] = self.columns.to(device)
        return self._places[device]

    def undone(self, values: Tensor) -> Tensor:
        """Values (..., K) in this order, as (..., K) in the columns' own."""
        return values[..., self.on(values.device).argsort()]
