"""Decoder layers with a recurrent layer in place of attention, as one call of our library per token.

Such a layer has one or two norms, a recurrent layer that our library computes (`fused_recurrent`), and experts, a gated
MLP or both. The parts are recognised by what they are, their order is verified by trials. Calls that the recurrent
layer's own forward must take go to the layer's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from core.kernels.native_block import BlockParts, GatedRows, NativeBlock
from core.kernels.native_layer import ACTIVATIONS
from core.layers.fused_layers import residuals
from core.layers.fused_mixtures import FusedMixture
from core.layers.fused_recurrent import FusedRecurrent
from core.layers.norms import NativeRMSNorm
from core.layers.recurrent_cache import RecurrentLayer
from core.layers.trials import MISFITS, function_key, near, random_rows
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

APART = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
TOGETHER = ("input_linear", "output_linear")
"""The linears of gated MLPs: gate, up and down, or gate and up in one, and down."""
After = tuple[None, ...] | None
"""Returned in a tuple after a layer's result; None: the result is returned alone."""
RETURNED: tuple[After, ...] = (None, (), (None,))
PLACES: dict[tuple[int, bool], tuple[int | None, ...]] = {
    (1, False): (0, None, None, None),
    (2, True): (0, None, 1, None),
    (4, True): (0, 2, 1, 3),
}
"""Which of a layer's norms is which of `BlockParts`, by their number and whether something follows the recurrence."""
PLACE = "layer_idx"
TRIED_TOKENS, TRIED_SIZES = 4, (0.02, 0.5, 10.0)
"""Scales of the trial rows: small ones show everything that a layer adds."""
NEAR, NEAR_STATES = 0.02, 0.03
"""Largest error relative to the largest change by the layer, and to the largest state."""


class FusedBlock:
    """The forward of one decoder layer: ours for a single token after others, otherwise its own."""

    def __init__(self, layer: Any, native: NativeBlock, recurrent: FusedRecurrent, after: After) -> None:
        self.own = layer.forward
        self.recurrent = recurrent
        self.hidden = native.hidden
        self._native = native
        self._after = after

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, K) -> (1, T, K)."""
        memory = None if args else self.recurrent.memory(hidden_states, kwargs)
        if memory is None:
            return self.own(hidden_states, *args, **kwargs)
        y = self._native(hidden_states, *memory)
        return y if self._after is None else (y, *self._after)


class Make(NamedTuple):
    """How a kind of layer computes what it does: see `BlockParts` and `FusedBlock`."""

    activation: str
    residual: float
    after: After


def adopt(layers: Sequence[nn.Module]) -> None:
    """Replace the forward of all such layers of a loaded tree on the CPU."""
    found: dict[str, Make | None] = {}
    for layer in layers:
        if "forward" in vars(layer) or (parts := _parts(layer)) is None:
            continue
        kind = function_key(layer.modules(), but=(PLACE,))
        if kind not in found:
            found[kind] = _make(layer, parts)
        if (make := found[kind]) is not None:
            vars(layer)["forward"] = _fused(layer, parts, make)


def release(layers: Sequence[nn.Module]) -> None:
    """Restore the layers' own forwards."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), FusedBlock):
            del vars(layer)["forward"]


def _recurrent(layer: nn.Module) -> list[FusedRecurrent]:
    return [own for child in layer.children() if isinstance(own := vars(child).get("forward"), FusedRecurrent)]


def _parts(layer: nn.Module) -> BlockParts | None:
    """Return the layer's parts; None if it has others."""
    children, recurrent = [child for child in layer.children() if not isinstance(child, nn.Identity)], _recurrent(layer)
    norms = [child for child in children if isinstance(child, NativeRMSNorm)]
    mixtures = [own for child in children if isinstance(own := vars(child).get("forward"), FusedMixture)]
    gated = [found for child in children if (found := _gated(child)) is not None]
    rest, single = len(mixtures) + len(gated), max(len(mixtures), len(gated)) <= 1
    places = PLACES.get((len(norms), bool(rest)))
    if places is None or not (single and len(recurrent) == 1 and len(children) == len(norms) + rest + 1):
        return None
    experts = mixtures[0].native(1) if mixtures else None
    hidden, placed = norms[0].parts.gain.numel(), [None if at is None else norms[at].parts for at in places]
    library = recurrent[0].native.library
    if (mixtures and experts is None) or not all(one.fit(hidden) and one.takes_one_input(library) for one in gated):
        return None
    return BlockParts(hidden, recurrent[0].native, placed, experts, gated[0] if gated else None)


def _gated(module: nn.Module) -> GatedRows | None:
    """Return a gated MLP's weights, if our library multiplies them; None if it is none."""
    linears = {name: child for name, child in module.named_children() if isinstance(child, HostLinear)}
    names = next((known for known in (*APART, TOGETHER) if linears.keys() == {*known}), None)
    if names is None or any(one.bias is not None for one in linears.values()):
        return None
    if common_library([one.host for one in linears.values()], 1) is None:
        return None
    *first, down = (linears[name].host.weight for name in names)
    inner = down.shape[1]
    ranges = [(weight, begin, begin + inner) for weight in first for begin in range(0, weight.shape[0], inner)]
    return GatedRows(ranges[0], ranges[1], down) if len(ranges) == 2 else None


def _fused(layer: Any, parts: BlockParts, make: Make) -> FusedBlock:
    native = NativeBlock(replace(parts, activation=make.activation, residual=make.residual))
    return FusedBlock(layer, native, _recurrent(layer)[0], make.after)


def _make(layer: Any, parts: BlockParts) -> Make | None:
    """Return how ours computes what the layer does; None if no way agrees."""
    activations = ACTIVATIONS if parts.gated else (parts.activation,)
    choices = product(activations, residuals(layer), RETURNED)
    makes = (Make(*choice) for choice in choices)
    return next((make for make in makes if _agrees(layer, _fused(layer, parts, make))), None)


@torch.inference_mode()
def _agrees(layer: Any, fused: FusedBlock) -> bool:
    """Return whether both give the same for tokens of different scales after others, and leave the same states."""
    try:
        return all(_agree(fused, size) for size in TRIED_SIZES)
    except MISFITS:
        return False
    finally:
        next(one for one in layer.modules() if isinstance(one, HostLinear)).inputs.forget()


def _agree(fused: FusedBlock, size: float) -> bool:
    x = random_rows([size] * TRIED_TOKENS, fused.hidden, fused.recurrent.dtype)[None]
    before, last = x[:, :-1].contiguous(), x[:, -1:].contiguous()
    results = []
    for forward in (fused.own, fused):
        cache = Cache(layers=[RecurrentLayer() for _ in range(fused.recurrent.index + 1)])
        given = dict.fromkeys(_needed(fused.own)) | {fused.recurrent.cache_name: cache}
        fused.own(before, **given)
        made = forward(last, **given)
        results.append((made, cache.layers[-1].taken()))
    (expected, states), (found, changed) = results
    if _after(expected) != _after(found):
        return False
    expected, found = (one[0] if isinstance(one, tuple) else one for one in (expected, found))
    change = (expected - last).float().abs().max()
    same = bool(((found - expected).float().abs() <= NEAR * change).all())
    return same and all(near(mine, own, NEAR_STATES) for mine, own in zip(changed, states, strict=True))


def _after(made: Any) -> After:
    return made[1:] if isinstance(made, tuple) else None


def _needed(forward: Callable[..., Any]) -> list[str]:
    """Return the further arguments that a layer must be given, if only as None."""
    given = list(inspect.signature(forward).parameters.values())[1:]
    return [one.name for one in given if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
