"""Standard decoder layers computed by two calls of our library for few rows.

In layers with experts, the two calls are the part before the experts, which take another call.

Every architecture has its own class for the same layer. Such layers are found by trying: a forward is replaced only if
ours gives the same results as the layer's own with its own weights. Calls that do not fit (long prompts, other types,
unusual masks) go to the layer's own forward.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.kernels.native_layer import ACTIVATIONS, NativeLayer, Turning
from core.kernels.native_library import MOST_FEW, NativeLibrary
from core.layers import experts_beside
from core.layers.after_attention import AfterAttention
from core.layers.fused_forward import FusedForward, LayerRun, Make, link
from core.layers.layer_arguments import ANGLES, LENT, MASK, POSITIONS, SIDE
from core.layers.layer_parts import (
    FACTOR,
    are_usual,
    dtype_of,
    is_gated,
    mlp_of,
    multiplied,
    norms_of,
    parts_of,
    projections_of,
)
from core.layers.lent_states import TYPE, borrows, lenders, lends
from core.layers.projections import HEAD_NORMS, Projection, named
from core.layers.trials import MISFITS, function_key, is_like, near, random_rows, rounds_alike
from core.offload.host_weight import common_library

TRIED_FACTOR = 0.75
"""A trial value of the scalar that may multiply a layer's result, to reveal it."""
PAIRINGS = (
    Turning(), Turning(exact=True), Turning(neighbours=True), Turning(neighbours=True, exact=True),
    Turning(neighbours=True, exact=True, in_order=True),
)  # fmt: skip
"""Which columns the rotary embedding pairs, with which angles, and whether in fp32."""
PLACE = "layer_idx"
TRIED_SIZES = (0.02, 0.5, 10.0)
"""Scales of the trial rows: small ones show everything that a layer adds."""
NEAR = 0.02
"""Largest error relative to a row's largest change by the layer; one step of a quantised input stays below it."""


def adopt(layers: list[nn.Module]) -> list[LayerRun]:
    """Replace the forward of all such layers of a loaded tree whose linears are all on the CPU.

    Returns the runs of layers that are computed together.
    """
    fits: dict[str, Make | None] = {}
    for layer, libraries in _by_layer(layers).items():
        kind = _kind(layer)
        if kind not in fits:
            fits[kind] = _make(layer, libraries)
        if (make := fits[kind]) is not None:
            layer.forward = _fused(layer, libraries, make, _rest(layer))
    _read_lent(layers)
    return link(_fused_ones(layers))


def _read_lent(layers: Sequence[nn.Module]) -> None:
    """Let layers that borrow keys and values read them from the cache of the layer that lends them, if ours computes
    all of both; otherwise it computes none of them."""
    places, shared = lenders(layers), any(map(borrows, layers))
    sharing = [layer for layer in layers if shared and (borrows(layer) or lends(layer))]
    ours = [vars(layer).get("forward") for layer in sharing]
    if not all(isinstance(one, FusedForward) for one in ours) or {*filter(borrows, sharing)} != places.keys():
        release(sharing)
    for layer, own in zip(layers, (vars(one).get("forward") for one in layers), strict=True):
        if isinstance(own, FusedForward):
            own.lends, own.index = own.lends and shared, places.get(layer, own.index)


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

    They no longer use the layers' modules, which move to a device. Those whose experts take several calls are dropped,
    and those that share keys and values, whose cache may be on the device.
    """
    found = _fused_ones(layers)
    release(layers)
    apart = {number: one for number, one in found.items() if not (one.borrows or one.lends)}
    return {number: forward for number, forward in apart.items() if forward.keep_experts()}


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
        projections = multiplied(layer)
        return _are_alike(projections, self.one, 1) and _are_alike(projections, self.few, MOST_FEW)


def _libraries(layer: nn.Module) -> Libraries | None:
    """Return the layer's libraries, if it has only known parts; otherwise None."""
    if "forward" in vars(layer) or not are_usual(layer):
        return None
    products = multiplied(layer)
    biased = any(one.bias is not None for one in projections_of(layer)[4:])
    if biased or (one := _common_library(products, 1)) is None:
        return None
    return Libraries(one, _common_library(products, MOST_FEW))


def _common_library(projections: list[Projection], rows: int) -> NativeLibrary | None:
    """Return the library that multiplies so many rows with all of these, if there are any and they take one input."""
    library = common_library([one.linear.host for one in projections], rows) if projections else None
    return library if library is not None and _are_alike(projections, library, rows) else None


def _are_alike(projections: list[Projection], library: NativeLibrary, rows: int) -> bool:
    return library.alike((one.linear.host.weight.storage for one in projections), rows)


def _kind(layer: Any) -> str:
    """Return a key that is equal for layers that compute the same function, whatever their index."""
    return function_key((layer, layer.self_attn, *mlp_of(layer).modules()), but=(PLACE,))


def _make(layer: Any, libraries: Libraries) -> Make | None:
    """Return how ours computes what the layer does; None if no way agrees."""
    attention = layer.self_attn
    own = {name for name, _ in attention.named_parameters(recurse=False)}
    if own - {"sinks"}:
        return None
    numbers = isinstance(getattr(attention, "head_dim", None), int) and hasattr(attention, "scaling")
    if not numbers or not parts_of(layer, Make("silu", half_angles=False)).fit(dtype_of(layer)):
        return None
    names, scaled = ACTIVATIONS if is_gated(layer) else ("",), (True, False) if hasattr(layer, FACTOR) else (False,)
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
    return [*(pairing._replace(columns=count, first=first) for count, pairing, first in makes), Turning(0)]


def _fused(layer: Any, libraries: Libraries, make: Make, rest: AfterAttention | None) -> FusedForward:
    parts, dtype, for_few = parts_of(layer, make), dtype_of(layer), libraries.few
    one = NativeLayer(libraries.one, parts, dtype)
    few = one if for_few is libraries.one else None if for_few is None else NativeLayer(for_few, parts, dtype)
    return FusedForward(layer, one, few, make, rest)


def _rest(layer: Any) -> AfterAttention | None:
    """Return the part after attention if it is not in ours, in as few native calls as were found."""
    beside = vars(layer).get(experts_beside.TOGETHER)
    return _plain(layer) if beside is None else AfterAttention(beside, norms_of(layer)[3])


def _plain(layer: Any) -> AfterAttention | None:
    """Return the part after attention with the layer's own modules; None if it is a dense MLP, which is in ours."""
    if is_gated(layer):
        return None
    mlp = experts_beside.ExpertsBeside(layer) if experts_beside.stand_in(layer) else mlp_of(layer)
    return AfterAttention(mlp, norms_of(layer)[3])


@contextmanager
def _only_attention(layer: Any) -> Iterator[None]:
    """Replace experts by the identity if ours leaves them to the layer anyway.

    Tiny differences can change the choice of experts, which would hide that everything else agrees.
    """
    if is_gated(layer):
        yield
        return
    experts = layer.experts if experts_beside.stand_in(layer) else mlp_of(layer)
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
        projections_of(layer)[0].linear.inputs.forget()


def _agree(layer: Any, fused: FusedForward, given: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]) -> bool:
    x, mask, positions = given
    arguments: dict[str, Any] = {MASK: mask, ANGLES: positions, **_side_of(x, fused)}
    if fused.unscaled is not None:
        arguments[POSITIONS] = torch.zeros(1, x.shape[1], dtype=torch.long)
    lent, own = _lent(layer, x, fused), _lent(layer, x, fused)
    if not (fused.suits(x, arguments) and fused.has_all(x, arguments | lent)):
        return False
    expected, found = layer.forward(x, **arguments, **own), fused(x, **arguments, **lent)
    if not is_like(found, expected):
        return False
    change = (expected - x).float().abs().amax(-1, keepdim=True)
    close = bool(((found.float() - expected.float()).abs() <= NEAR * change).all())
    return close and rounds_alike(found, expected) and _lend_alike(lent, own)


def _side_of(x: Tensor, fused: FusedForward) -> dict[str, Tensor]:
    """Make a side input for rows x (1, M, K), if the layer takes one."""
    columns = fused.one.side
    return {SIDE: random_rows([1.0] * x.shape[1], columns, x.dtype)[None]} if columns else {}


def _lent(layer: Any, x: Tensor, fused: FusedForward) -> dict[str, Any]:
    """Make the argument that carries shared keys and values, with as many as rows x (1, M, K) for one that reads
    them."""
    if LENT not in inspect.signature(layer.forward).parameters:
        return {}
    rows = random_rows([1.0] * 2 * fused.one.kv_heads * x.shape[1], fused.one.dim, x.dtype)
    states = rows.view(2, 1, fused.one.kv_heads, x.shape[1], fused.one.dim).unbind()
    return {LENT: {getattr(layer.self_attn, TYPE): states} if fused.borrows else {}}


def _lend_alike(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether the same keys and values were lent."""
    ours, own = found.get(LENT, {}), expected.get(LENT, {})
    pairs = [pair for name in own if name in ours for pair in zip(ours[name], own[name], strict=True)]
    return ours.keys() == own.keys() and all(near(mine, others, NEAR) for mine, others in pairs)


def _inputs(layer: Any, sizes: Sequence[float], make: Make) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Make rows of different scales relative to what the layer adds, a causal mask, and rotary angles."""
    generator = torch.Generator().manual_seed(0)
    dtype, rows = dtype_of(layer), len(sizes)
    columns = projections_of(layer)[0].linear.host.columns
    x = torch.randn(1, rows, columns, generator=generator) * torch.tensor(sizes)[None, :, None]
    angles = torch.randn(1, rows, (make.turning.columns or layer.self_attn.head_dim) // 2, generator=generator)
    angles = angles if make.half_angles else angles.repeat(1, 1, 2)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    return x.to(dtype), mask, (angles.cos().to(dtype), angles.sin().to(dtype))
