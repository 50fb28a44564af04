"""Logits of an output head of which a copy in 4 bits is read first, and only what could be drawn again in full."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.matmul import ChosenMatmul
from core.kernels.native_library import NativeLibrary, Parts, native
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import DECODE

SPAN = 16
"""Rows that are one in the choice, by the largest of their logits; as in head.c."""


class CoarseHead:
    """A head (N, K) and its copy, multiplied with few rows of input. Logits that are computed again are what the head
    gives for their row of input alone, bit for bit: drafted tokens stay those of one token after the other."""

    most_rows = 1
    """Rows of input that it pays for: with more the products decide, and those of 4 bits take as long as those of 8.
    The call itself takes as many as FEW_ROWS."""

    def __init__(self, full: ChosenMatmul, copy: ChosenMatmul, wanted: int) -> None:
        """`wanted`: logits of each row of input that are computed again, at least."""
        self._full, self._copy, self._wanted = full, copy, wanted
        self._parts = [Parts([(one.weight, 0, one.rows)]) for one in (copy, full)]
        self._library = full.by_bucket[DECODE].library or native()

    def __call__(self, x: HostInput) -> Tensor:
        """(M, K) -> (M, N) in x's type, M at most FEW_ROWS."""
        if self._library is None:
            return self._with_torch(x)
        return self.counted(self._library, x)[0]

    def counted(self, library: NativeLibrary, x: HostInput) -> tuple[Tensor, int]:
        """The same (M, N) by our library's call, and how many logits were computed again."""
        copy, full = self._parts
        return library.head(copy, full, x.x.contiguous(), self._wanted)

    def _with_torch(self, x: HostInput) -> Tensor:
        logits = self._copy(x)
        chosen = logits >= _least(logits.float(), self._wanted)[:, None]
        kernel = self._full.by_bucket[DECODE]
        for own, one, row in zip(logits, chosen, x.x, strict=True):
            places = one.nonzero()[:, 0]
            some = _gathered(self._full.weight, places)
            own[places] = kernel.compute(some, HostInput(row[None]), 0, len(places))[0]
        return logits


def _least(logits: Tensor, wanted: int) -> Tensor:
    """(M,): the `wanted`-th largest of the spans' largest logits; the `wanted` largest logits reach it."""
    padded = F.pad(logits, (0, -logits.shape[1] % SPAN), value=-torch.inf)
    tops = padded.view(len(logits), -1, SPAN).amax(2)
    return tops.topk(min(wanted, tops.shape[1]), 1).values[:, -1]


def _gathered(weight: QuantizedWeight, places: Tensor) -> QuantizedWeight:
    """Some rows of a weight, in this order."""
    assert weight.scales is not None
    shape = (len(places), weight.shape[1])
    return QuantizedWeight(weight.format, shape, weight.data[places], weight.scales[places])
