"""Computes the logits of an output head from a 4-bit copy first, then recomputes the top candidates at full
precision."""

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
"""Adjacent rows that are selected together, by the largest of their coarse logits; must match head.c."""


class CoarseHead:
    """An output head (N, K) and its coarse copy, for few rows of input.

    Recomputed logits equal bit for bit what the full head gives for that input row alone, so that verifying drafted
    tokens yields the same tokens as decoding one at a time.
    """

    most_rows = 1
    """Input rows up to which this is faster. With more rows, compute dominates memory traffic, and a 4-bit product
    takes as long as an 8-bit one. The call itself accepts up to MOST_FEW rows."""

    def __init__(self, full: ChosenMatmul, copy: ChosenMatmul, wanted: int) -> None:
        """`wanted`: the minimum number of logits to recompute for each row of input."""
        self._full, self._copy, self._wanted = full, copy, wanted
        self._parts = [Parts([(one.weight, 0, one.rows)]) for one in (copy, full)]
        self._library = full.by_bucket[DECODE].library or native()

    def __call__(self, x: HostInput) -> Tensor:
        """Return the logits (M, N) of x (M, K) in x's type; M is at most MOST_FEW."""
        if self._library is None:
            return self._with_torch(x)
        return self.counted(self._library, x)[0]

    def counted(self, library: NativeLibrary, x: HostInput) -> tuple[Tensor, int]:
        """Return the same logits (M, N) from the native call, and the number of logits that were recomputed."""
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
    """Return (M,): the `wanted`-th largest of the spans' maxima. At least the `wanted` largest logits reach it."""
    padded = F.pad(logits, (0, -logits.shape[1] % SPAN), value=-torch.inf)
    tops = padded.view(len(logits), -1, SPAN).amax(2)
    return tops.topk(min(wanted, tops.shape[1]), 1).values[:, -1]


def _gathered(weight: QuantizedWeight, places: Tensor) -> QuantizedWeight:
    """Return the rows `places` of a weight, in this order."""
    assert weight.scales is not None
    shape = (len(places), weight.shape[1])
    return QuantizedWeight(weight.format, shape, weight.data[places], weight.scales[places])
