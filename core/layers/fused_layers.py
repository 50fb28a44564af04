"""Standard decoder layers computed by two calls of our library for few rows.

In layers with experts, the two calls are the part before the experts, which take another call.

Every architecture has its own class for the same layer. Such layers are found by trying: a forward is replaced only if
ours gives the same results as the layer's own with its own weights. Calls that do not fit (long prompts, other types,
unusual masks) go to the layer's own forward.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.kernels.native_layer import ACTIVATIONS, LayerParts, NativeLayer, Turning
from core.kernels.native_library import MOST_FEW, NativeLibrary
from core.layers import experts_beside, moe
from core.layers.after_attention import AfterAttention
from core.layers.fused_forward import POSITIONS, FusedForward, LayerRun, Make, link
from core.layers.norms import NativeRMSNorm, without_gain
from core.layers.projections import (
    HEAD_GATE,
    HEAD_NORMS,
    VALUE_NORM,
    Projection,
    are_attention,
    are_gated,
    named,
    of_attention,
    of_head_gates,
    of_mlp,
)
from core.layers.trials import MISFITS, function_key, is_like, rounds_alike
from core.offload.host_weight import common_library

PARTS = {"self_attn", "mlp"}
NORMS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset(name for name in roles if name): roles
    for roles in (
        ("input_layernorm", "", "post_attention_layernorm", ""),
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
        ("input_layernorm", "post_attention_layernorm", "", "post_feedforward_layernorm"),
        ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    )
}
"""The norms of a layer by name, with their roles: before and after attention, before and after the MLP. Layers with any
other part are not replaced."""
LENT, LENDS, BORROWS = "shared_kv_states", "store_full_length_kv", "is_kv_shared_layer"
"""The argument that carries keys and values to layers that share them, and the attributes of its writers and
readers."""
FACTOR, TRIED_FACTOR = "layer_scalar", 0.75
"""The scalar buffer that may multiply a layer's result, and a trial value that reveals it."""
PAIRINGS = ((False, False), (False, True), (True, False), (True, True))
"""Which columns the rotary embedding pairs, and whether in fp32, as in `Turning`."""
PLACE = "layer_idx"
TRIED_SIZES = (0.02, 0.5, 10.0)
"""Scales of the trial rows: small ones show everything that a layer adds."""
NEAR = 0.02
"""Largest error relative to a row's largest change by the layer; one step of a quantised input stays below it."""


def lends(layer: nn.Module) -> bool:
    """Return whether a layer gives its keys and values to later ones."""
    return bool(getattr(getattr(layer, "self_attn", None), LENDS, False))


def adopt(layers: list[nn.Module]) -> list[LayerRun]:
    """Replace the forward of all such layers of a loaded tree whose linears are all on the CPU.

    Returns the runs of layers that are computed together.
    """
    fits: dict[str, Make | None] = {}
    lent = any(getattr(getattr(layer, "self_attn", None), BORROWS, False) for layer in layers)
    for layer, libraries in _by_layer(layers).items():
        if lent and lends(layer):
            continue
        kind = _kind(layer)
        if kind not in fits:
            fits[kind] = _make(layer, libraries)
        if (make := fits[kind]) is not None:
            layer.forward = _fused(layer, libraries, make, _rest(layer))
    return link(_fused_ones(layers))


def _by_layer(layers: list[nn.Module]) -> dict[Any, Libraries]:
    """Return the libraries of the layers that have only known parts and that our library multiplies.

    Which instruction set was measured as fastest may depend on a layer's storages and differs little. One call computes
    only layers of the same, so those of most layers serve all.
    """
    own = {layer: found for layer in layers if (found := _libraries(layer)) is not None}
    ranked = [libraries for libraries, _ in Counter(own.values()).most_common()]
    return {layer: next(one for one in ranked if one.suit(layer, found)) for layer, found in own.items()}


def _fused_ones(layers: list[nn.Module]) -> dict[int, FusedForward]:
    found = {number: vars(layer).get("forward") for number, layer in enumerate(layers)}
    return {number: forward for number, forward in found.items() if isinstance(forward, FusedForward)}


def take(layers: list[nn.Module]) -> dict[int, FusedForward]:
    """Restore the layers' own forwards, and return the replacements by layer number.

    They no longer use the layers' modules, which move to a device. Those whose experts take several calls are dropped.
    """
    found = _fused_ones(layers)
    release(layers)
    return {number: forward for number, forward in found.items() if forward.keep_experts()}


def release(layers: Sequence[nn.Module]) -> None:
    """Restore the layers' own forwards."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), FusedForward):
            del vars(layer)["forward"]


class Libraries(NamedTuple):
    """The library that multiplies one row with all linears of a layer, and that for up to MOST_FEW, if there is one."""

    one: NativeLibrary
    few: NativeLibrary | None

    def suit(self, layer: nn.Module, own: Libraries) -> bool:
        """Return whether they can replace a layer's own: they take one input for all of its linears."""
        if self.few is None or own.few is None:
            return self == own
        projections = _multiplied(layer)
        return _are_alike(projections, self.one, 1) and _are_alike(projections, self.few, MOST_FEW)


def _libraries(layer: nn.Module) -> Libraries | None:
    """Return the layer's libraries, if it has only known parts; otherwise None."""
    children = _children(layer)
    if not children.keys() >= PARTS or frozenset(children.keys() - PARTS) not in NORMS or "forward" in vars(layer):
        return None
    if not are_attention({*named(children["self_attn"])}) or not (_is_gated(layer) or _has_experts(layer)):
        return None
    projections = _projections(layer)
    if not all(isinstance(norm, NativeRMSNorm) for norm in _norms(layer) if norm is not None):
        return None
    multiplied = _multiplied(layer)
    if any(one.bias is not None for one in projections[4:]) or (one := _common_library(multiplied, 1)) is None:
        return None
    return Libraries(one, _common_library(multiplied, MOST_FEW))


def _children(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the layer's parts by their usual names; the part after attention counts as one if it consists of
    several."""
    children = named(layer)
    others = experts_beside.OTHERS if experts_beside.stand_in(layer) else ()
    return {name: child for name, child in children.items() if name not in others}


def _mlp(layer: nn.Module) -> Any:
    return _children(layer)["mlp"]


def _is_gated(layer: nn.Module) -> bool:
    return are_gated({*named(_mlp(layer))}) and not experts_beside.stand_in(layer)


def _has_experts(layer: Any) -> bool:
    if experts_beside.stand_in(layer):
        return moe.TOGETHER in vars(layer.experts)
    return any(moe.TOGETHER in vars(module) for module in _mlp(layer).modules())


def _norms(layer: nn.Module) -> list[Any]:
    """Return the layer's norms with weights, in the order of `LayerParts`."""
    children = _children(layer)
    roles = NORMS[frozenset(children.keys() - PARTS)]
    attention = named(children["self_attn"])
    heads = [attention.get(name) for name in HEAD_NORMS]
    return [*(children.get(role) for role in roles), *heads]


def _projections(layer: Any) -> list[Projection]:
    """Return the projections of attention, and those of the MLP if it is a dense one; [] if some are not on the CPU."""
    attention, mlp = of_attention(layer.self_attn), of_mlp(_mlp(layer)) if _is_gated(layer) else []
    return [*attention, *mlp] if attention and (mlp or not _is_gated(layer)) else []


def _multiplied(layer: Any) -> list[Projection]:
    """Return all projections, with that of gates of heads; [] if some are not on the CPU."""
    projections, gates = _projections(layer), of_head_gates(layer.self_attn)
    return [*projections, *gates] if projections and bool(gates) is (HEAD_GATE in named(layer.self_attn)) else []


def _common_library(projections: list[Projection], rows: int) -> NativeLibrary | None:
    """Return the library that multiplies so many rows with all of these, if there are any and they take one input."""
    library = common_library([one.linear.host for one in projections], rows) if projections else None
    return library if library is not None and _are_alike(projections, library, rows) else None


def _are_alike(projections: list[Projection], library: NativeLibrary, rows: int) -> bool:
    return library.alike((one.linear.host.weight.storage for one in projections), rows)


def _kind(layer: Any) -> str:
    """Return a key that is equal for layers that compute the same function, whatever their index."""
    return function_key((layer, layer.self_attn, *_mlp(layer).modules()), but=(PLACE,))


def _make(layer: Any, libraries: Libraries) -> Make | None:
    """Return how ours computes what the layer does; None if no way agrees."""
    attention = layer.self_attn
    own = {name for name, _ in attention.named_parameters(recurse=False)}
    if own - {"sinks"}:
        return None
    numbers = isinstance(getattr(attention, "head_dim", None), int) and hasattr(attention, "scaling")
    if not numbers or not parts_of(layer, Make("silu", half_angles=False)).fit(_dtype(layer)):
        return None
    names, scaled = ACTIVATIONS if _is_gated(layer) else ("",), (True, False) if hasattr(layer, FACTOR) else (False,)
    # The usual rotary embedding with all the rest before the others: each trial takes some products of the layer.
    choices = product(_turnings(attention), names, (False, True), residuals(layer), scaled)
    with _another_factor(layer):
        makes = (Make(name, half, residual, turning, scale) for turning, name, half, residual, scale in choices)
        return next(
            (make for make in makes if _agrees(layer, _fused(layer, libraries, make, _plain(layer)), make)), None
        )


@contextmanager
def _another_factor(layer: nn.Module) -> Iterator[None]:
    """Set the layer's scalar factor, which often is 1, to a value that shows in results."""
    own = layer._buffers.get(FACTOR)
    if own is not None:
        layer._buffers[FACTOR] = torch.full_like(own, TRIED_FACTOR)
    try:
        yield
    finally:
        if own is not None:
            layer._buffers[FACTOR] = own


def residuals(layer: nn.Module) -> list[float]:
    """Return candidates for the residual multiplier: any float attribute of the layer may be it."""
    return [1.0, *sorted({value for value in vars(layer).values() if isinstance(value, float)} - {1.0})]


def _turnings(attention: Any) -> list[Turning]:
    """Return candidates for the rotary embedding: of the configured fraction of a head, all of it, or nothing."""
    said = getattr(getattr(attention, "config", None), "rope_parameters", None) or {}
    share = said.get("partial_rotary_factor", 1.0) if isinstance(said, dict) else 1.0
    some = int(attention.head_dim * share) if isinstance(share, float) else 0
    columns = [*([some] if 0 < some < attention.head_dim and some % 2 == 0 else []), attention.head_dim]
    orders = (False, True) if {*HEAD_NORMS} <= {*named(attention)} else (False,)
    makes = product(columns, PAIRINGS, orders)
    return [*(Turning(count, *pairing, first) for count, pairing, first in makes), Turning(0)]


def parts_of(layer: Any, make: Make) -> LayerParts:
    """Return our library's parameters for a layer with known parts."""
    projections, attention = _projections(layer), layer.self_attn
    value_norm = getattr(attention, VALUE_NORM, None)
    gainless = None if value_norm is None else without_gain(value_norm, attention.head_dim, _dtype(layer))
    return LayerParts(
        layer.self_attn.head_dim,
        make.activation,
        [one.weight for one in projections],
        [one.bias for one in projections[:4]],
        [*(None if norm is None else norm.parts for norm in _norms(layer)), gainless],
        make.residual,
        make.turning,
        float(getattr(layer, FACTOR)) if make.scaled else 1.0,
        float(getattr(attention, "attn_logit_softcapping", None) or 0),
        next((one.weight for one in of_head_gates(attention)), None),
    )


def _dtype(layer: nn.Module) -> torch.dtype:
    dtype: torch.dtype = next(norm.dtype for norm in _norms(layer) if norm is not None)
    return dtype


def _fused(layer: Any, libraries: Libraries, make: Make, rest: AfterAttention | None) -> FusedForward:
    parts, dtype, for_few = parts_of(layer, make), _dtype(layer), libraries.few
    one = NativeLayer(libraries.one, parts, dtype)
    few = one if for_few is libraries.one else None if for_few is None else NativeLayer(for_few, parts, dtype)
    return FusedForward(layer, one, few, make, rest)


def _rest(layer: Any) -> AfterAttention | None:
    """Return the part after attention if it is not in ours, in as few native calls as were found."""
    beside = vars(layer).get(experts_beside.TOGETHER)
    return _plain(layer) if beside is None else AfterAttention(beside, _norms(layer)[3])


def _plain(layer: Any) -> AfterAttention | None:
    """Return the part after attention with the layer's own modules; None if it is a dense MLP, which is in ours."""
    if _is_gated(layer):
        return None
    mlp = experts_beside.ExpertsBeside(layer) if experts_beside.stand_in(layer) else _mlp(layer)
    return AfterAttention(mlp, _norms(layer)[3])


@contextmanager
def _only_attention(layer: Any) -> Iterator[None]:
    """Replace experts by the identity if ours leaves them to the layer anyway.

    Tiny differences can change the choice of experts, which would hide that everything else agrees.
    """
    if _is_gated(layer):
        yield
        return
    experts = layer.experts if experts_beside.stand_in(layer) else _mlp(layer)
    own, replaced = experts.forward, "forward" in vars(experts)
    experts.forward = _handing_on(layer, own)
    try:
        yield
    finally:
        del experts.forward
        if replaced:
            experts.forward = own


def _handing_on(layer: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    if experts_beside.stand_in(layer):
        return lambda states, *_: states
    x, _, _ = _inputs(layer, TRIED_SIZES, Make("", half_angles=False))
    pair = isinstance(own(x), tuple)
    return lambda states: (states, None) if pair else states


@torch.inference_mode()
def _agrees(layer: Any, fused: FusedForward, make: Make) -> bool:
    """Return whether both compute the same for rows of different scales, singly and, if `fused` takes them,
    together."""
    together = [TRIED_SIZES[: fused.most_rows]] if fused.most_rows > 1 else []
    tried = (*((size,) for size in TRIED_SIZES), *together)
    try:
        with _only_attention(layer):
            return all(_agree(layer, fused, _inputs(layer, sizes, make)) for sizes in tried)
    except MISFITS:
        return False
    finally:
        _projections(layer)[0].linear.inputs.forget()


def _agree(layer: Any, fused: FusedForward, given: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]) -> bool:
    x, mask, positions = given
    arguments: dict[str, Any] = {"attention_mask": mask, "position_embeddings": positions}
    if fused.unscaled is not None:
        arguments[POSITIONS] = torch.zeros(1, x.shape[1], dtype=torch.long)
    if not fused.suits(x, arguments):
        return False
    lent: dict[str, Any] = {LENT: {}} if LENT in inspect.signature(layer.forward).parameters else {}
    expected, found = layer.forward(x, **arguments, **lent), fused(x, **arguments)
    if not is_like(found, expected):
        return False
    change = (expected - x).float().abs().amax(-1, keepdim=True)
    near = bool(((found.float() - expected.float()).abs() <= NEAR * change).all())
    return near and rounds_alike(found, expected)


def _inputs(layer: Any, sizes: Sequence[float], make: Make) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Make rows of different scales relative to what the layer adds, a causal mask, and rotary angles."""
    generator = torch.Generator().manual_seed(0)
    dtype, rows = _dtype(layer), len(sizes)
    columns = _projections(layer)[0].linear.host.columns
    x = torch.randn(1, rows, columns, generator=generator) * torch.tensor(sizes)[None, :, None]
    angles = torch.randn(1, rows, (make.turning.columns or layer.self_attn.head_dim) // 2, generator=generator)
    angles = angles if make.half_angles else angles.repeat(1, 1, 2)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    return x.to(dtype), mask, (angles.cos().to(dtype), angles.sin().to(dtype))
