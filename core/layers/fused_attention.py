"""Attention of some of a layer's heads in two calls of our library, for few rows.

A layer that the library computes entirely has been recognised by trying (`core.layers.fused_layers`). Its projections
cut to some heads compute the same for these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from core.kernels.native_layer import NativeLayer
from core.kernels.packed_states import Stored
from core.kernels.quantized_weight import QuantizedWeight
from core.layers.attention import call_for
from core.layers.fused_forward import FusedForward
from core.layers.layer_arguments import Given

OUTSIDE = 4
"""Norms of a layer besides those of queries, keys and values, which come first among its parts."""


class States(Protocol):
    """A layer's KV cache."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append states (1, H, M, D); return all that are seen."""


class FusedAttention:
    """The attention of a recognised layer with some heads only. `suits` says for which arguments."""

    def __init__(
        self, fused: FusedForward, weights: Sequence[QuantizedWeight], biases: Sequence[Tensor | None]
    ) -> None:
        """`weights`, `biases`: of queries, keys, values and output, cut to these heads."""
        self.suits = fused.suits
        self._half_angles, self._scale = fused.half_angles, fused.scale
        self._one, self._few = (_cut(native, weights, biases) for native in (fused.one, fused.few))

    def __call__(self, x: Tensor, states: States, arguments: Mapping[str, Any]) -> Tensor:
        """(1, M, K) -> (1, M, K)."""
        given = Given.of(arguments)
        native = self._one if x.shape[1] == 1 else self._few
        query, key, value = native.begin(x, *given.angles(self._half_angles))
        keys, values = map(Stored, states.update(key, value))
        call = call_for(query, keys, values, given.mask, None, self._scale)
        return native.attend(torch.zeros_like(x), call)[0]


def _cut(native: NativeLayer, weights: Sequence[QuantizedWeight], biases: Sequence[Tensor | None]) -> NativeLayer:
    norms = (*(None,) * OUTSIDE, *native.parts.norms[OUTSIDE:])
    parts = replace(native.parts, weights=weights, biases=biases, norms=norms, residual=1.0, factor=1.0)
    return NativeLayer(native.library, parts, native.dtype)
