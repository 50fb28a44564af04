"""Recognises short convolution layers (LFM2) by the names of their parts: see `fused_recurrent`."""

from __future__ import annotations

from typing import Any

from torch import nn

from core.kernels.native_short import NativeShort, ShortParts
from core.layers import recurrent_layers
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

PARTS = {"conv", "in_proj", "out_proj"}


def recognise(layer: Any) -> NativeShort | None:
    """Return the layer's native call; None if it has other parts."""
    children = dict(layer.named_children())
    linears = [child for child in children.values() if isinstance(child, HostLinear)]
    if children.keys() != PARTS or len(linears) != 2 or any(one.bias is not None for one in linears):
        return None
    library = common_library([one.host for one in linears], 1)
    if library is None or not isinstance(layer.conv, nn.Conv1d):
        return None
    _, taps, bias = recurrent_layers.taps_of(layer.conv)
    parts = ShortParts(layer.in_proj.host.weight, taps, bias, layer.out_proj.host.weight)
    return NativeShort(library, parts) if parts.fit() else None
