"""Fused experts (mixture of experts) as lists of linears, so that each expert's rows are placed like any others.

transformers calls `experts_forward` for every architecture whose experts it fused; only the experts that some token
needs are computed, where their rows lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAME = "hetegen"
LINEARS = "hetegen_linears"
"""Where a module keeps its experts' linears, by the fused parameter's name: outside of its children, which are many."""


def register() -> str:
    """Make our implementation known to transformers; the name to ask for."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)
    return NAME


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(n, H), (n, k) chosen experts, (n, k) their weights -> (n, H)."""
    linears: dict[str, list[nn.Module]] = module.__dict__.get(LINEARS, {})
    if not linears:  # the meta tree, of which only shapes are wanted
        return torch.zeros_like(hidden_states)
    # Summed in 32 bits, as transformers' fast ways do: rounding each expert's part first costs bf16 its last digits.
    out = torch.zeros_like(hidden_states, dtype=torch.float32)
    up, down = (linears[name] for name in fused_names(module))
    gate = module._apply_gate if module.has_gate else module.act_fn
    chosen = top_k_index.cpu()
    for index in torch.unique(chosen).tolist():
        if index >= module.num_experts:
            continue
        tokens, slots = (part.to(hidden_states.device) for part in torch.where(chosen == index))
        y = down[index](gate(up[index](hidden_states[tokens])))
        if module.has_post_expert_norm:
            y = module.post_expert_norm(y)
        out.index_add_(0, tokens, (y * top_k_weights[tokens, slots, None]).float())
    return out.to(hidden_states.dtype)


def put(module: Any, name: str, linears: Sequence[nn.Module]) -> None:
    """Replace one fused parameter of an experts module by its linears, one per expert."""
    module._parameters[name] = None
    module.__dict__.setdefault(LINEARS, {})[name] = list(linears)


def fused_names(module: Any) -> tuple[str, str]:
    """Names of the two fused parameters."""
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
