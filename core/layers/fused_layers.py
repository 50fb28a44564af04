"""Decoder layers of the commonest make computed by two calls of our library while few tokens are read at once.

Of layers with experts the two calls are what comes before those, which are a call of their own.

Every architecture has a class of its own for the same layer. Which layers are such ones is found by trying: a forward
is replaced only where ours gives what the layer's own gives, with its own weights. Whatever a call does not fit (long
prompts, other types, unusual masks) goes to the layer's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_layer import ACTIVATIONS, LayerParts, NativeLayer
from core.kernels.native_library import FEW_ROWS, NativeLibrary
from core.layers import moe
from core.layers.after_attention import AfterAttention
from core.layers.fused_forward import FusedForward, LayerRun, Make, link
from core.layers.norms import NativeRMSNorm
from core.layers.trials import MISFITS
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

PARTS, EXPERTS = {"self_attn", "mlp"}, "block_sparse_moe"
NORMS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset(name for name in roles if name): roles
    for roles in (
        ("input_layernorm", "", "post_attention_layernorm", ""),
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    )
}
"""Which norms a layer has, and so which stand before and after attention, before and after the gated part."""
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = ("q_norm", "k_norm")
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""The names of the parts, as nearly all architectures have them; one with any other part is left alone."""
PLAIN, PLACE = (bool, int, float, str, type(None)), "layer_idx"
TRIED_SIZES = (0.02, 0.5, 10.0)
"""Sizes of the rows tried: small ones show everything that a layer adds."""
SAME_ROUNDING = 0.97
"""Fraction of bf16 outputs that must match bit for bit: the exponential function is not computed as torch does it."""
NEAR = 0.02
"""Largest error, as a fraction of a row's largest change by the layer; one step of a quantised input makes less."""


def adopt(layers: list[nn.Module]) -> list[LayerRun]:
    """Replace the forward of all such layers of a filled tree whose linears are all on the CPU. Which of them will be
    computed together."""
    fits: dict[str, Make | None] = {}
    for layer in layers:
        if (library := _library(layer)) is None:
            continue
        kind = _kind(layer)
        if kind not in fits:
            fits[kind] = _make(layer, library)
        if (make := fits[kind]) is not None:
            layer.forward = _fused(layer, library, make)
    return link(_fused_ones(layers))


def _fused_ones(layers: list[nn.Module]) -> dict[int, FusedForward]:
    found = {number: vars(layer).get("forward") for number, layer in enumerate(layers)}
    return {number: forward for number, forward in found.items() if isinstance(forward, FusedForward)}


def take(layers: list[nn.Module]) -> dict[int, FusedForward]:
    """The forwards that replace the layers' own, by number, which they then have again. Those of layers with experts,
    whose router moves to the device, are let go."""
    found = _fused_ones(layers)
    release(layers)
    return {number: forward for number, forward in found.items() if forward.rest is None}


def release(layers: list[nn.Module]) -> None:
    """Give the layers their own forward back."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _library(layer: nn.Module) -> NativeLibrary | None:
    """What multiplies one row with all of the layer's linears, if it has the parts that we know and no others."""
    children = _children(layer)
    if not children.keys() >= PARTS or frozenset(children.keys() - PARTS) not in NORMS or "forward" in vars(layer):
        return None
    attention = dict(children["self_attn"].named_children())
    if attention.keys() not in (ATTENTION, {*ATTENTION, *HEAD_NORMS}) or not (_is_gated(layer) or _has_experts(layer)):
        return None
    linears = _linears(layer)
    if not all(isinstance(norm, NativeRMSNorm) for norm in _norms(layer) if norm is not None):
        return None
    return None if any(one.bias is not None for one in linears[4:]) else _common_library(linears, 1)


def _children(layer: nn.Module) -> dict[str, nn.Module]:
    """The layer's parts by their usual names: what follows attention is called otherwise in some families."""
    return {"mlp" if name == EXPERTS else name: child for name, child in layer.named_children()}


def _mlp(layer: nn.Module) -> Any:
    return _children(layer)["mlp"]


def _is_gated(layer: nn.Module) -> bool:
    return dict(_mlp(layer).named_children()).keys() == MLP


def _has_experts(layer: nn.Module) -> bool:
    return any(moe.TOGETHER in vars(module) for module in _mlp(layer).modules())


def _norms(layer: nn.Module) -> list[Any]:
    """The layer's norms in the order of `LayerParts`."""
    children = _children(layer)
    roles = NORMS[frozenset(children.keys() - PARTS)]
    heads = [getattr(children["self_attn"], name, None) for name in HEAD_NORMS]
    return [*(children.get(role) for role in roles), *heads]


def _linears(layer: Any) -> list[Any]:
    """Of attention, and of the gated part where that is all that follows."""
    attention, mlp = layer.self_attn, _mlp(layer)
    gated = (mlp.gate_proj, mlp.up_proj, mlp.down_proj) if _is_gated(layer) else ()
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *gated]


def _common_library(linears: list[Any], rows: int) -> NativeLibrary | None:
    """What multiplies so many rows of input with all of them, if they are on the CPU and want inputs of one kind."""
    if not all(isinstance(one, HostLinear) for one in linears):
        return None
    library = common_library([one.host for one in linears], rows)
    kinds = {library.input_kind(one.host.weight.storage, rows) for one in linears} if library else ()
    return library if len(kinds) == 1 else None


def _kind(layer: Any) -> str:
    """The same for layers that compute the same: their classes and plain values, but for the place in the model."""
    modules = (layer, layer.self_attn, *_mlp(layer).modules())
    return repr([(type(one).__qualname__, sorted(_plain_values(one))) for one in modules])


def _plain_values(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        if name != PLACE and isinstance(value, PLAIN):
            yield name, repr(value)


def _make(layer: Any, library: NativeLibrary) -> Make | None:
    """How ours computes what the layer does; None if it computes something else."""
    attention = layer.self_attn
    own = {name for name, _ in attention.named_parameters(recurse=False)}
    if own - {"sinks"} or getattr(attention, "attn_logit_softcapping", None):
        return None
    numbers = isinstance(getattr(attention, "head_dim", None), int) and hasattr(attention, "scaling")
    if not numbers or not parts_of(layer, "silu").fit(_dtype(layer)):
        return None
    names = ACTIVATIONS if _is_gated(layer) else ("",)
    makes = map(Make, *zip(*product(names, (False, True), _residuals(layer), _turned(attention)), strict=True))
    return next((make for make in makes if _agrees(layer, _fused(layer, library, make), make)), None)


def _residuals(layer: nn.Module) -> list[float]:
    """Any number that the layer keeps may be what its halves' results are multiplied with."""
    return [1.0, *sorted({value for value in vars(layer).values() if isinstance(value, float)} - {1.0})]


def _turned(attention: Any) -> list[int]:
    """How many columns of a head positions may turn: so many as the configuration says, or all."""
    said = getattr(getattr(attention, "config", None), "rope_parameters", None) or {}
    share = said.get("partial_rotary_factor", 1.0) if isinstance(said, dict) else 1.0
    some = int(attention.head_dim * share) if isinstance(share, float) else 0
    return [some, attention.head_dim] if 0 < some < attention.head_dim and some % 2 == 0 else [attention.head_dim]


def parts_of(layer: Any, activation: str, residual: float = 1.0, turned: int = 0) -> LayerParts:
    """What our library needs of a layer that has the parts that we know."""
    linears = _linears(layer)
    return LayerParts(
        layer.self_attn.head_dim,
        activation,
        [one.host.weight for one in linears],
        [one.bias for one in linears[:4]],
        [None if norm is None else norm.parts for norm in _norms(layer)],
        residual,
        turned,
    )


def _dtype(layer: nn.Module) -> torch.dtype:
    dtype: torch.dtype = next(norm.dtype for norm in _norms(layer) if norm is not None)
    return dtype


def _fused(layer: Any, library: NativeLibrary, make: Make) -> FusedForward:
    parts, dtype = parts_of(layer, make.activation, make.residual, make.turned), _dtype(layer)
    one, for_few = NativeLayer(library, parts, dtype), _common_library(_linears(layer), FEW_ROWS)
    few = one if for_few is library else None if for_few is None else NativeLayer(for_few, parts, dtype)
    return FusedForward(
        layer, one, few, make, None if _is_gated(layer) else AfterAttention(_mlp(layer), _norms(layer)[3])
    )


@contextmanager
def _only_attention(layer: Any) -> Iterator[None]:
    """Inside, what follows attention gives back what it reads, where ours leaves it to the layer anyway: experts are
    chosen by little, and others than before would hide that the rest is the same."""
    if _is_gated(layer):
        yield
        return
    mlp, own = _mlp(layer), _mlp(layer).forward
    replaced = "forward" in vars(mlp)
    x, _, _ = _inputs(layer, TRIED_SIZES, Make("", half_angles=False))
    pair = isinstance(own(x), tuple)
    mlp.forward = lambda states: (states, None) if pair else states
    try:
        yield
    finally:
        del mlp.forward
        if replaced:
            mlp.forward = own


@torch.inference_mode()
def _agrees(layer: Any, fused: FusedForward, make: Make) -> bool:
    """Whether both compute the same for rows of different sizes, one by one and, where `fused` takes them, together."""
    together = [TRIED_SIZES[: fused.most_rows]] if fused.most_rows > 1 else []
    tried = (*((size,) for size in TRIED_SIZES), *together)
    try:
        with _only_attention(layer):
            return all(_agree(layer, fused, _inputs(layer, sizes, make)) for sizes in tried)
    except MISFITS:
        return False
    finally:
        layer.self_attn.q_proj.inputs.forget()


def _agree(layer: Any, fused: FusedForward, given: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]) -> bool:
    x, mask, positions = given
    arguments = {"attention_mask": mask, "position_embeddings": positions}
    if not fused.suits(x, arguments):
        return False
    expected, found = layer.forward(x, **arguments), fused(x, **arguments)
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype is not found.dtype:
        return False
    change = (expected - x).float().abs().amax(-1, keepdim=True)
    near = bool(((found.float() - expected.float()).abs() <= NEAR * change).all())
    return near and (x.dtype is torch.float32 or float((found == expected).float().mean()) >= SAME_ROUNDING)


def _inputs(layer: Any, sizes: Sequence[float], make: Make) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows small and large against what the layer adds to them, a causal mask, and angles."""
    generator = torch.Generator().manual_seed(0)
    dtype, rows = _dtype(layer), len(sizes)
    columns = layer.self_attn.q_proj.host.columns
    x = torch.randn(1, rows, columns, generator=generator) * torch.tensor(sizes)[None, :, None]
    angles = torch.randn(1, rows, (make.turned or layer.self_attn.head_dim) // 2, generator=generator)
    angles = angles if make.half_angles else angles.repeat(1, 1, 2)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    return x.to(dtype), mask, (angles.cos().to(dtype), angles.sin().to(dtype))
