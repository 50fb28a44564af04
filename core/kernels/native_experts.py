"""A layer's routed experts as one native call: computes the experts that any input row chose, and the weighted sums."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.kernels.native_abi import format_number
from core.kernels.native_fields import address, addresses, numbers, reals
from core.kernels.native_library import NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight

GATES = {"silu": 0, "gelu_tanh": 1, "clamped": 2}
"""Activations of the gate; `clamped` is gpt-oss's, with `alpha` and `limit`."""
PLAIN = {"relu_squared": 3}
"""Activations of experts without a gate projection."""
EXPERT_TYPES = (torch.float32, torch.bfloat16)


class _Experts(ctypes.Structure):
    """Mirrors `Experts` in experts.c."""

    _fields_ = (
        *numbers("format", "hidden", "inner", "experts", "activation", "gated", "interleaved"),
        *reals("alpha", "limit"),
        *addresses("up_fields", "down_fields", "up_bias", "down_bias"),
    )


@dataclass(frozen=True, eq=False)
class Activation:
    """The activation between an expert's two products. `interleaved`: gate and up rows alternate in one weight."""

    name: str
    interleaved: bool = False
    alpha: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True, eq=False)
class ExpertParts:
    """The weights of all experts of a layer, all of one storage: up (with gate) and down, and biases (experts, N)."""

    activation: Activation
    up: Sequence[QuantizedWeight]
    down: Sequence[QuantizedWeight]
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def gated(self) -> bool:
        """Whether a gate projection multiplies the up projection."""
        return self.activation.name in GATES

    def fit(self, dtype: torch.dtype) -> bool:
        """Return whether shapes and types are those that the library assumes."""
        rows, hidden = self.up[0].shape
        inner = rows // 2 if self.gated else rows
        alike = {weight.shape for weight in self.up} == {(rows, hidden)}
        alike = alike and {weight.shape for weight in self.down} == {(hidden, inner)}
        biases = ((self.up_bias, rows), (self.down_bias, hidden))
        plain = all(
            bias is None or (bias.dtype is dtype and bias.is_contiguous() and bias.shape == (len(self.up), length))
            for bias, length in biases
        )
        storages = {weight.storage for weight in (*self.up, *self.down)}
        return alike and plain and len(storages) == 1 and dtype in EXPERT_TYPES


class NativeExperts:
    """The native call of one layer. All tensors are of `dtype` and on the CPU; the parts must `fit` it."""

    def __init__(self, library: NativeLibrary, parts: ExpertParts, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.library = library
        self.hidden = parts.down[0].shape[0]
        self._held = parts, Parts.whole(parts.up), Parts.whole(parts.down)  # keeps alive what the fields point to
        self._fields = _fields(parts, self._held[1], self._held[2])
        self.address = ctypes.addressof(self._fields)

    def with_weights(self, up: Sequence[QuantizedWeight], down: Sequence[QuantizedWeight]) -> NativeExperts:
        """Return the same call for weights of the same shapes at other addresses."""
        return NativeExperts(self.library, replace(self._held[0], up=up, down=down), self.dtype)

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Return (M, K) for x (M, K); `chosen` and `shares` (M, k) hold each row's expert indices and their weights."""
        return self.library.experts(self.address, x, chosen.contiguous(), shares.float().contiguous())


def _fields(parts: ExpertParts, up: Parts, down: Parts) -> _Experts:
    hidden, inner = parts.down[0].shape
    activation = parts.activation
    return _Experts(
        format_number(parts.up[0].storage), hidden, inner, len(parts.up), (GATES | PLAIN)[activation.name], parts.gated,
        activation.interleaved, activation.alpha, activation.limit,
        ctypes.addressof(up.fields), ctypes.addressof(down.fields), address(parts.up_bias), address(parts.down_bias),
    )  # fmt: skip
