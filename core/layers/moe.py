"""Fused experts (mixture of experts) as lists of linears, so that each expert's rows are placed like any others.

transformers calls `experts_forward` for every architecture with fused experts. Only the chosen experts are computed,
where their rows lie: all in one call if `core.layers.fused_experts` allows it for the module, otherwise one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NAME = "hetegen"
LINEARS = "hetegen_linears"
"""The attribute with a module's expert linears by fused parameter name; not children, which would be too many."""
TOGETHER = "hetegen_together"
"""The attribute with the object that computes all experts in one call."""


class Together(Protocol):
    """Computes all chosen experts of a module in one call."""

    def suits(self, x: Tensor, chosen: Tensor) -> bool:
        """Return whether it accepts x (M, K) and chosen (M, k)."""

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x (M, K); chosen and shares (M, k) -> (M, K)."""


def register() -> str:
    """Register our implementation with transformers; return its name."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)
    return NAME


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(n, H), (n, k) chosen experts, (n, k) their weights -> (n, H)."""
    linears = linears_of(module)
    if not linears:  # the meta tree, used for shapes only
        return torch.zeros_like(hidden_states)
    together: Together | None = module.__dict__.get(TOGETHER)
    if together is not None and together.suits(hidden_states, top_k_index):
        return together(hidden_states, top_k_index, top_k_weights)
    # Accumulated in fp32, as in transformers' fast paths: rounding each expert's part costs bf16 its last bits.
    out = torch.zeros_like(hidden_states, dtype=torch.float32)
    up, down = (linears[name] for name in fused_names(module))
    gate = module._apply_gate if module.has_gate else module.act_fn
    chosen = top_k_index.cpu()  # once: each comparison below would synchronise with the device
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
    module.__dict__.pop(TOGETHER, None)
    module.__dict__.setdefault(LINEARS, {})[name] = list(linears)


def use(module: Any, together: Together) -> None:
    """Compute the module's experts with `together`, until other linears are put in."""
    module.__dict__[TOGETHER] = together


def linears_of(module: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the linears put into a module by fused parameter name; empty if there are none."""
    found: dict[str, list[nn.Module]] = module.__dict__.get(LINEARS, {})
    return found


def fused_names(module: Any) -> tuple[str, str]:
    """Return the names of the two fused parameters."""
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
