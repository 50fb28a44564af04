"""Gated delta rule layers (Qwen3-Next, 3.5 and 3.6) as one call of our library per token.

Besides its products, such a layer makes some thirty small calls per token. The layers are recognised by their parts'
names and verified by trials. Several tokens at once, other caches and other types go to the layer's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from core.kernels.native_delta import DeltaParts, DeltaSizes, NativeDelta, Rows
from core.kernels.native_layer import NormParts
from core.layers import recurrent_layers
from core.layers.kv_cache import cache_argument
from core.layers.recurrent_cache import RecurrentLayer
from core.layers.recurrent_trials import NEAR
from core.layers.trials import MISFITS, near
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

SEPARATE = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
BY_HEAD = ("in_proj_qkvz", "in_proj_ba")
"""The input projections: one for each use, or grouped by key head with the value heads that share it."""
OTHERS = {"conv1d", "norm", "out_proj"}
SIZES = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
"""The layers' attributes for the fields of `DeltaSizes`."""
TRIED_TOKENS = 4


class FusedDelta:
    """The forward of one layer: ours for a single token after others, otherwise its own."""

    def __init__(self, layer: Any, native: NativeDelta, dtype: torch.dtype) -> None:
        self.own = layer.forward
        self._native = native
        self._dtype = dtype
        self._index = layer.layer_idx
        self.cache_name = cache_argument(layer)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, K) -> (1, T, K)."""
        memory = None if args else self._memory(hidden_states, kwargs)
        if memory is None:
            return self.own(hidden_states, *args, **kwargs)
        return self._native(hidden_states, *memory)

    def _memory(self, x: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Return the convolution's and the recurrent state for x (1, T, K), if ours takes them; otherwise None."""
        cache, masked = kwargs.get(self.cache_name), kwargs.get("attention_mask") is not None
        if masked or x.shape[:2] != (1, 1) or x.dtype is not self._dtype or x.device.type != "cpu" or cache is None:
            return None
        inputs, state = (own(self._index, state_idx=0) for own in (cache.get_conv_state, cache.get_recurrent_state))
        if inputs is None or state is None or cache.is_recording_past(self._index) or not x.is_contiguous():
            return None
        kept = inputs.transpose(1, 2)
        fits = kept.dtype is x.dtype and kept.is_contiguous() and recurrent_layers.is_state(state)
        return (kept[0], state[0]) if fits and kept.device.type == "cpu" else None


def adopt(root: Any) -> None:
    """Replace the forward of all such layers of a loaded tree on the CPU whose functions are already ours."""
    sound: dict[tuple[object, ...], bool] = {}
    for layer in root.modules():
        if not recurrent_layers.is_replaced(layer) or (native := _native(layer)) is None:
            continue
        fused, kind = FusedDelta(layer, native, root.dtype), (type(layer), native.sizes)
        if kind not in sound:
            sound[kind] = _agrees(layer, fused, root.dtype)
        if sound[kind]:
            layer.forward = fused


def release(root: nn.Module) -> None:
    """Restore the forwards that the layers had."""
    for layer in root.modules():
        if isinstance(fused := vars(layer).get("forward"), FusedDelta):
            layer.forward = fused.own


def _native(layer: Any) -> NativeDelta | None:
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


@torch.inference_mode()
def _agrees(layer: Any, fused: FusedDelta, dtype: torch.dtype) -> bool:
    """Return whether both give the same for a token after others, and leave the same states."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TRIED_TOKENS, layer.out_proj.host.rows, generator=generator).to(dtype)
    before, last = x[:, :-1].contiguous(), x[:, -1:].contiguous()
    results = []
    try:
        for forward in (fused.own, fused):
            cache = Cache(layers=[RecurrentLayer() for _ in range(layer.layer_idx + 1)])
            fused.own(before, **{fused.cache_name: cache})
            made = forward(last, **{fused.cache_name: cache})
            held = cache.layers[-1]
            results.append((made, held.conv_states[0], held.recurrent_states[0]))
    except MISFITS:
        return False
    finally:
        layer.out_proj.inputs.forget()
    return all(near(found, expected, NEAR[dtype]) for expected, found in zip(*results, strict=True))
