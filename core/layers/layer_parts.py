"""The parts of a usual decoder layer, found by their names, as our library's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.kernels.native_layer import LayerParts, NormParts, SideWeights
from core.layers import experts_beside, moe
from core.layers.fused_forward import Make
from core.layers.lent_states import lent_heads
from core.layers.norms import NativeRMSNorm, without_gain
from core.layers.projections import (
    ACTIVATION,
    HEAD_GATE,
    HEAD_NORMS,
    SIDE,
    SIDE_NORM,
    VALUE_NORM,
    Projection,
    are_attention,
    are_gated,
    named,
    of_attention,
    of_head_gates,
    of_mlp,
    of_side,
)

PARTS = {"self_attn", "mlp"}
PARALLEL = ("input_layernorm", "", "", "")
"""The norms of a layer whose MLP reads what attention reads (Cohere)."""
NORMS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset(name for name in roles if name): roles
    for roles in (
        ("input_layernorm", "", "post_attention_layernorm", ""),
        PARALLEL,
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
        ("input_layernorm", "post_attention_layernorm", "", "post_feedforward_layernorm"),
        ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    )
}
"""The norms of a layer by name, with their roles: before and after attention, before and after the MLP. Layers with any
other part are not replaced."""
FACTOR = "layer_scalar"
"""The scalar buffer that may multiply a layer's result."""


def are_usual(layer: nn.Module) -> bool:
    """Return whether a layer has only known parts, of types that our library may compute."""
    children = children_of(layer)
    if not children.keys() >= PARTS or frozenset(children.keys() - PARTS) not in NORMS:
        return False
    if not are_attention({*named(children["self_attn"])}) or not (is_gated(layer) or _has_experts(layer)):
        return False
    norms = norms_of(layer)
    gainless = [norm for norm in norms[-len(HEAD_NORMS) :] if norm is not None and not list(norm.parameters())]
    others = (norm for norm in (*norms, _side_norm(layer)) if norm is not None and norm not in gainless)
    return all(isinstance(norm, NativeRMSNorm) for norm in others)


def children_of(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the layer's parts by their usual names; the part after attention counts as one if it consists of
    several."""
    children = named(layer)
    others = experts_beside.OTHERS if experts_beside.stand_in(layer) else ()
    sided = (*SIDE, SIDE_NORM, ACTIVATION) if children.keys() >= {*SIDE, SIDE_NORM} else ()
    return {name: child for name, child in children.items() if name not in (*others, *sided)}


def mlp_of(layer: nn.Module) -> Any:
    """Return the part after attention."""
    return children_of(layer)["mlp"]


def is_gated(layer: nn.Module) -> bool:
    """Return whether a dense gated MLP follows attention."""
    return are_gated({*named(mlp_of(layer))}) and not experts_beside.stand_in(layer)


def _has_experts(layer: Any) -> bool:
    if experts_beside.stand_in(layer):
        return moe.TOGETHER in vars(layer.experts)
    return any(moe.TOGETHER in vars(module) for module in mlp_of(layer).modules())


def norms_of(layer: nn.Module) -> list[Any]:
    """Return the layer's norms with weights, in the order of `LayerParts`."""
    children = children_of(layer)
    roles = NORMS[frozenset(children.keys() - PARTS)]
    attention = named(children["self_attn"])
    heads = [attention.get(name) for name in HEAD_NORMS]
    return [*(children.get(role) for role in roles), *heads]


def _side_norm(layer: nn.Module) -> Any:
    """Return the norm after the side input, if the layer takes one."""
    return named(layer).get(SIDE_NORM)


def projections_of(layer: Any) -> list[Projection]:
    """Return the projections of attention, and those of the MLP if it is a dense one; [] if some are not on the CPU."""
    attention, mlp = of_attention(layer.self_attn), of_mlp(mlp_of(layer)) if is_gated(layer) else []
    return [*attention, *mlp] if attention and (mlp or not is_gated(layer)) else []


def multiplied(layer: Any) -> list[Projection]:
    """Return all projections, with those of gates of heads and a side input; [] if some are not on the CPU."""
    projections, gates, sided = projections_of(layer), of_head_gates(layer.self_attn), of_side(layer)
    whole = bool(gates) is (HEAD_GATE in named(layer.self_attn)) and bool(sided) is (_side_norm(layer) is not None)
    return [*projections, *gates, *sided] if projections and whole else []


def parts_of(layer: Any, make: Make) -> LayerParts:
    """Return our library's parameters for a layer with known parts."""
    projections, attention, sided = projections_of(layer), layer.self_attn, of_side(layer)
    norms = [*norms_of(layer), getattr(attention, VALUE_NORM, None), _side_norm(layer)]
    return LayerParts(
        layer.self_attn.head_dim,
        make.activation,
        [one.weight for one in projections],
        [one.bias for one in projections[:4]],
        [_norm_parts(norm, attention.head_dim, dtype_of(layer)) for norm in norms],
        make.residual,
        make.turning,
        float(getattr(layer, FACTOR)) if make.scaled else 1.0,
        float(getattr(attention, "attn_logit_softcapping", None) or 0),
        next((one.weight for one in of_head_gates(attention)), None),
        lent_heads(attention, projections[3].linear.host.columns // attention.head_dim),
        SideWeights(*(one.weight for one in sided)) if sided else None,
        NORMS[frozenset(children_of(layer).keys() - PARTS)] is PARALLEL,
    )


def _norm_parts(norm: Any, columns: int, dtype: torch.dtype) -> NormParts | None:
    """Return the parts of an optional norm; those without weights are of heads, of so many columns."""
    if norm is None or isinstance(norm, NativeRMSNorm):
        return None if norm is None else norm.parts
    return without_gain(norm, columns, dtype)


def dtype_of(layer: nn.Module) -> torch.dtype:
    """Return the type of the layer's rows."""
    dtype: torch.dtype = next(norm.dtype for norm in norms_of(layer) if isinstance(norm, NativeRMSNorm))
    return dtype
