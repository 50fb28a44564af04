"""Recurrent layers (gated delta rule, Mamba-2, short convolutions) as one call of our library per token.

Besides its products, such a layer makes ten to thirty small calls per token. Each kind is recognised by the names of
its parts and verified by trials. Several tokens at once, other caches and other types go to the layer's own forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from core.kernels.native_recurrent_layer import NativeRecurrentLayer
from core.layers import delta_layers, recurrent_layers, short_layers, state_layers
from core.layers.kv_cache import cache_argument
from core.layers.recurrent_cache import RecurrentLayer
from core.layers.recurrent_trials import NEAR
from core.layers.trials import MISFITS, near

KINDS = (delta_layers.recognise, state_layers.recognise, short_layers.recognise)
TRIED_TOKENS = 4


class FusedRecurrent:
    """The forward of one layer: ours for a single token after others, otherwise its own."""

    def __init__(self, layer: Any, native: NativeRecurrentLayer, dtype: torch.dtype) -> None:
        self.own = layer.forward
        self.native = native
        self.dtype = dtype
        self.index = layer.layer_idx
        self.cache_name = cache_argument(layer)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, K) -> (1, T, K)."""
        memory = None if args else self.memory(hidden_states, kwargs)
        if memory is None:
            return self.own(hidden_states, *args, **kwargs)
        return self.native(hidden_states, *memory)

    def memory(self, x: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None] | None:
        """Return the convolution's and the recurrent state for x (1, T, K), if ours takes them; otherwise None."""
        cache, masked = kwargs.get(self.cache_name), kwargs.get("attention_mask") is not None
        if masked or x.shape[:2] != (1, 1) or x.dtype is not self.dtype or x.device.type != "cpu" or cache is None:
            return None
        inputs, state = (own(self.index, state_idx=0) for own in (cache.get_conv_state, cache.get_recurrent_state))
        if inputs is None or cache.is_recording_past(self.index) or not x.is_contiguous():
            return None
        kept = inputs.transpose(1, 2)
        fits = kept.dtype is x.dtype and kept.is_contiguous() and kept.device.type == "cpu"
        if not self.native.has_state:
            return (kept[0], None) if fits else None
        return (kept[0], state[0]) if fits and state is not None and recurrent_layers.is_state(state) else None


def adopt(root: Any) -> None:
    """Replace the forward of all such layers of a loaded tree on the CPU whose functions are already ours."""
    sound: dict[tuple[object, ...], bool] = {}
    for layer in root.modules():
        if not recurrent_layers.is_replaced(layer) or (native := _native(layer)) is None:
            continue
        fused, kind = FusedRecurrent(layer, native, root.dtype), (type(layer), native.sizes)
        if kind not in sound:
            sound[kind] = _agrees(layer, fused, root.dtype)
        if sound[kind]:
            layer.forward = fused


def release(root: nn.Module) -> None:
    """Restore the forwards that the layers had."""
    for layer in root.modules():
        if isinstance(fused := vars(layer).get("forward"), FusedRecurrent):
            layer.forward = fused.own


def _native(layer: Any) -> NativeRecurrentLayer | None:
    """Return the layer's native call; None if its parts are of no known kind."""
    return next((native for recognise in KINDS if (native := recognise(layer)) is not None), None)


@torch.inference_mode()
def _agrees(layer: Any, fused: FusedRecurrent, dtype: torch.dtype) -> bool:
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
            results.append((made, *cache.layers[-1].taken()))
    except MISFITS:
        return False
    finally:
        layer.out_proj.inputs.forget()
    return all(near(found, expected, NEAR[dtype]) for expected, found in zip(*results, strict=True))
