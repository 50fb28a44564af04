"""Recognises Mamba-2 layers (Granite 4, Falcon-H1, Bamba, Nemotron-H) by the names of their parts: see
`fused_recurrent`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.kernels.native_layer import NormParts
from core.kernels.native_state import NativeState, StateParts, StateSizes
from core.layers import recurrent_layers
from core.layers.norms import NativeRMSNorm
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

PARTS, OTHERS = {"conv1d", "in_proj", "out_proj", "norm"}, {"act"}
SIZES = ("num_heads", "n_groups", "head_dim", "ssm_state_size")
"""The layers' attributes for the fields of `StateSizes`."""
FACTOR, FACTORS = "ssm_in_multiplier", "mup_vector"
"""Falcon-H1's factors of a layer's input, and of its projections."""
NORM_FIRST = "norm_before_gate"
"""Says whether Falcon-H1's norm precedes the gate; such norms round once, at their end."""


def recognise(layer: Any) -> NativeState | None:
    """Return the layer's native call; None if it has other parts."""
    children = dict(layer.named_children())
    linears = [child for child in children.values() if isinstance(child, HostLinear)]
    numbers = [getattr(layer, name, None) for name in SIZES]
    if children.keys() - OTHERS != PARTS or len(linears) != 2 or any(one.bias is not None for one in linears):
        return None
    library = common_library([one.host for one in linears], 1)
    if library is None or not all(isinstance(number, int) for number in numbers):
        return None
    parts = _parts(layer, StateSizes(*(int(number) for number in numbers if number is not None)))
    return NativeState(library, parts) if parts is not None and parts.fit() else None


def _parts(layer: Any, sizes: StateSizes) -> StateParts | None:
    vectors = [getattr(layer, name, None) for name in ("dt_bias", "A_log", "D")]
    if not isinstance(layer.conv1d, nn.Conv1d) or not all(isinstance(one, Tensor) for one in vectors):
        return None
    shift, rate, skip = (one.detach().float() for one in vectors if one is not None)
    _, taps, bias = recurrent_layers.taps_of(layer.conv1d)
    norm = layer.norm.original if isinstance(layer.norm, NativeRMSNorm) else layer.norm
    factors: Tensor | None = getattr(layer, FACTORS, None)
    return StateParts(
        sizes, layer.in_proj.host.weight, taps, bias, shift.contiguous(), -rate.exp(), skip.contiguous(),
        _norm(norm), layer.out_proj.host.weight, float(getattr(layer, FACTOR, 1.0)),
        None if factors is None else factors.detach().float().flatten().contiguous(),
        bool(getattr(norm, NORM_FIRST, False)),
    )  # fmt: skip


def _norm(norm: Any) -> NormParts | None:
    """Return the parameters of a gated norm; None if there is only a gate."""
    gain, eps = next(norm.parameters(), None), getattr(norm, "variance_epsilon", None)
    if gain is None or eps is None:
        return None
    return NormParts(gain.detach().float().contiguous(), eps, rounded=not hasattr(norm, NORM_FIRST))
