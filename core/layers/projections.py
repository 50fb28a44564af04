"""The projections of a usual decoder layer: of its attention, and of its gated MLP. Some layers hold several in one
linear, one after another (Phi-3)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from core.kernels.quantized_weight import QuantizedWeight
from core.offload.hetero_linear import HostLinear

USUAL = {
    "block_sparse_moe": "mlp", "feed_forward": "mlp", "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm",
    "query_layernorm": "q_norm", "key_layernorm": "k_norm",
    "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj", "activation_fn": "act_fn",
    "post_operator_norm": "post_self_attn_layernorm", "post_ffn_norm": "post_mlp_layernorm",
}  # fmt: skip
"""The usual names of parts that have others in some families (LFM2, mixtures of experts)."""
ATTENTION, KEYS_AS_VALUES = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "k_proj", "o_proj"}
JOINED_ATTENTION, QUERIES_ONLY = {"qkv_proj", "o_proj"}, {"q_proj", "o_proj"}
HEAD_NORMS, VALUE_NORM, HEAD_GATE = ("q_norm", "k_norm"), "v_norm", "g_proj"
MLP, JOINED_MLP, ACTIVATION = {"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}, "act_fn"
"""The names of the parts in nearly all architectures."""
SIDE, SIDE_NORM = ("per_layer_input_gate", "per_layer_projection"), "post_per_layer_input_norm"
"""The parts of a layer around its side input (Gemma 3n and 4)."""

IDLE = (nn.Dropout, nn.Identity)


class Projection(NamedTuple):
    """Rows [begin, end) of a linear."""

    linear: HostLinear
    begin: int
    end: int

    @property
    def weight(self) -> QuantizedWeight:
        """Return these rows (N, K) of the weight, as views."""
        whole = self.linear.host.weight
        return whole if (self.begin, self.end) == (0, self.linear.host.rows) else whole.rows(self.begin, self.end)

    @property
    def bias(self) -> Tensor | None:
        """Return the bias (N,) of these rows."""
        return None if self.linear.bias is None else self.linear.bias[self.begin : self.end]


def named(module: nn.Module) -> dict[str, Any]:
    """Return the module's parts by their usual names, without those that do nothing here."""
    children = module.named_children()
    return {USUAL.get(name, name): child for name, child in children if not isinstance(child, IDLE)}


def are_attention(names: set[str]) -> bool:
    """Return whether attention with these parts has the usual projections, and norms of what it makes or none."""
    projections = names - {VALUE_NORM, HEAD_GATE, *HEAD_NORMS}
    if projections == QUERIES_ONLY:
        return True
    return projections in (ATTENTION, KEYS_AS_VALUES, JOINED_ATTENTION) and len(names & {*HEAD_NORMS}) != 1


def are_gated(names: set[str]) -> bool:
    """Return whether these are the parts of a gated MLP."""
    return names - {ACTIVATION} in (MLP, JOINED_MLP)


def of_attention(attention: nn.Module) -> list[Projection]:
    """Return q, k, v and the output; [] if they are not all on the CPU. Without k, it and v are no rows of q."""
    parts = _linears(attention, ATTENTION | JOINED_ATTENTION)
    if parts.keys() == QUERIES_ONLY:
        nothing = Projection(parts["q_proj"], 0, 0)
        return [_whole(parts["q_proj"]), nothing, nothing, _whole(parts["o_proj"])]
    if parts.keys() == JOINED_ATTENTION:
        joined, output = parts["qkv_proj"], parts["o_proj"]
        keys = (joined.host.rows - output.host.columns) // 2
        return [*_divided(joined, output.host.columns, keys, keys), _whole(output)]
    if not parts.keys() >= KEYS_AS_VALUES:
        return []
    keys_made = parts["k_proj"]
    return [*map(_whole, (parts["q_proj"], keys_made, parts.get("v_proj", keys_made), parts["o_proj"]))]


def of_head_gates(attention: nn.Module) -> list[Projection]:
    """Return the one that makes a gate for each head, if there is one."""
    return [_whole(linear) for linear in _linears(attention, {HEAD_GATE}).values() if linear.bias is None]


def of_side(layer: nn.Module) -> list[Projection]:
    """Return the gate of the layer's side input and what projects it back; [] if they are not all on the CPU."""
    parts = _linears(layer, {*SIDE})
    return [_whole(parts[name]) for name in SIDE] if parts.keys() == {*SIDE} else []


def of_mlp(mlp: nn.Module) -> list[Projection]:
    """Return gate, up and down; [] if they are not all on the CPU."""
    parts = _linears(mlp, MLP | JOINED_MLP)
    if parts.keys() == JOINED_MLP:
        down = parts["down_proj"]
        return [*_divided(parts["gate_up_proj"], down.host.columns, down.host.columns), _whole(down)]
    if parts.keys() != MLP:
        return []
    return [*map(_whole, (parts["gate_proj"], parts["up_proj"], parts["down_proj"]))]


def _linears(module: nn.Module, names: set[str]) -> Mapping[str, HostLinear]:
    """Return the module's parts of these names; {} if some are not on the CPU."""
    found = {name: child for name, child in named(module).items() if name in names}
    return found if all(isinstance(child, HostLinear) for child in found.values()) else {}


def _whole(linear: HostLinear) -> Projection:
    return Projection(linear, 0, linear.host.rows)


def _divided(linear: HostLinear, *counts: int) -> list[Projection]:
    """Return projections of so many rows each."""
    borders = [sum(counts[:number]) for number in range(len(counts) + 1)]
    return [Projection(linear, begin, end) for begin, end in pairwise(borders)]
