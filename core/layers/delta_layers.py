"""Recognises gated delta rule layers (Qwen3-Next, 3.5 and 3.6) by the names of their parts: see `fused_recurrent`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from core.kernels.native_delta import DeltaParts, DeltaSizes, NativeDelta, Rows
from core.kernels.native_layer import NormParts
from core.layers import recurrent_layers
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

SEPARATE = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
BY_HEAD = ("in_proj_qkvz", "in_proj_ba")
"""The input projections: one for each use, or grouped by key head with the value heads that share it."""
OTHERS = {"conv1d", "norm", "out_proj"}
SIZES = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
"""The layers' attributes for the fields of `DeltaSizes`."""


def recognise(layer: Any) -> NativeDelta | None:
    """Return the layer's native call; None if it has unknown parts."""
    linears = [child for child in layer.children() if isinstance(child, HostLinear)]
    numbers = [getattr(layer, name, None) for name in SIZES]
    if not all(isinstance(number, int) for number in numbers) or any(one.bias is not None for one in linears):
        return None
    library = common_library([one.host for one in linears], 1) if linears else None
    sizes = DeltaSizes(*(int(number) for number in numbers if number is not None))
    rows = _rows(layer, sizes)
    if library is None or rows is None:
        return None
    parts = _parts(layer, sizes, rows)
    return NativeDelta(library, parts) if parts is not None and parts.fit() else None


def _rows(layer: Any, sizes: DeltaSizes) -> list[Rows] | None:
    """Return the mapping from weight rows to outputs; None if the layer has other linears."""
    linears = {name: one.host.weight for name, one in layer.named_children() if isinstance(one, HostLinear)}
    gate, taken_over = sizes.channels, sizes.channels + sizes.values
    if linears.keys() == {*SEPARATE, "out_proj"}:
        places = (0, gate, taken_over, taken_over + sizes.value_heads)
        return [Rows(linears[name], 0, linears[name].shape[0], at) for name, at in zip(SEPARATE, places, strict=True)]
    if linears.keys() == {*BY_HEAD, "out_proj"}:
        return list(_rows_by_head(linears, sizes))
    return None


def _rows_by_head(linears: Mapping[str, Any], sizes: DeltaSizes) -> Iterator[Rows]:
    shared = sizes.value_heads // sizes.key_heads
    gate, taken_over = sizes.channels, sizes.channels + sizes.values
    wide, few = (linears[name] for name in BY_HEAD)
    value = shared * sizes.value_dim
    for head in range(sizes.key_heads):
        keys, values = head * sizes.key_dim, head * value
        at = head * 2 * (sizes.key_dim + value)
        for rows, place in (
            (sizes.key_dim, keys), (sizes.key_dim, sizes.keys + keys), (value, 2 * sizes.keys + values),
            (value, gate + values),
        ):  # fmt: skip
            yield Rows(wide, at, at + rows, place)
            at += rows
    for head in range(sizes.key_heads):
        for half in range(2):
            at = (2 * head + half) * shared
            yield Rows(few, at, at + shared, taken_over + half * sizes.value_heads + head * shared)


def _parts(layer: Any, sizes: DeltaSizes, rows: list[Rows]) -> DeltaParts | None:
    children = dict(layer.named_children())
    eps = [value for value in vars(layer.norm).values() if isinstance(value, float)]
    if not children.keys() >= OTHERS or not isinstance(layer.conv1d, nn.Conv1d) or len(eps) != 1:
        return None
    gain, (_, taps, bias) = next(layer.norm.parameters()), recurrent_layers.taps_of(layer.conv1d)
    rate, shift = -layer.A_log.detach().float().exp(), layer.dt_bias.detach().float().contiguous()
    norm = NormParts(gain.detach().float().contiguous(), eps[0], rounded=True)
    return DeltaParts(sizes, rows, taps, bias, rate.contiguous(), shift, norm, layer.out_proj.host.weight)
