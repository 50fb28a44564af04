"""The column permutation of a weight that was quantised in another order than its own (GPTQ's act-order)."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor


class ColumnOrder:
    """`columns` (K,), int64 on the host: the original column index of each stored column.

    Orders compare equal by content, wherever they were read from, so that weights with one input (q, k and v) can share
    the permuted input.
    """

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
        """Return the permutation (K,) on `device`; copied there once."""
        if device not in self._places:
            self._places[device] = self.columns.to(device)
        return self._places[device]

    def undone(self, values: Tensor) -> Tensor:
        """Return values (..., K), given in stored order, as (..., K) in the original column order."""
        return values[..., self.on(values.device).argsort()]
