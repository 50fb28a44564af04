"""Mixtures whose classes in transformers compute all experts, or loop over them, without calling `experts_forward`.

Their modules get classes of ours, with the same parameters and the same result, that choose experts first. This is
done before a model is traced, which cannot follow such loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.adapted_class import adapt_classes
from core.layers.moe import experts_forward


class Experts(nn.Module):
    """Fused experts, described as transformers describes those that call `experts_forward`."""

    has_gate, has_bias, has_post_expert_norm = True, False, False
    is_concatenated, is_transposed = True, False
    act_fn: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(n, H), (n, k) chosen experts, (n, k) their weights -> (n, H)."""
        return experts_forward(self, hidden_states, top_k_index, top_k_weights)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class TurnedExperts(Experts):
    """Fused experts that are stored as (inputs, outputs)."""

    is_transposed = True


class ClampedExperts(Experts):
    """Fused experts whose gate and up are limited after the activation, as in Step 3.7."""

    limit: float

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate).clamp(max=self.limit) * up.clamp(min=-self.limit, max=self.limit)


class SigmoidRouter(nn.Module):
    """The router of Llama 4: experts with the largest scores, each weighted with the sigmoid of its own."""

    weight: Tensor
    top_k: int

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, H) -> scores (n, experts), weights (n, k) and numbers (n, k) of the chosen experts."""
        scores = F.linear(hidden_states, self.weight)
        best, chosen = scores.topk(self.top_k, dim=1)
        return scores, best.float().sigmoid().to(scores.dtype), chosen


class ScaledInputs(nn.Module):
    """The block of Llama 4: an expert reads the state times the expert's weight, and its result counts as it is.

    transformers gives the experts that are not chosen zeros, from which they make zeros.
    """

    router: nn.Module
    experts: nn.Module
    shared_expert: nn.Module

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) -> (..., H), and scores (n, experts)."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, shares, chosen = self.router(x)
        scaled = (x[:, None] * shares[..., None].to(x.dtype)).flatten(0, 1)
        routed = self.experts(scaled, chosen.reshape(-1, 1), torch.ones_like(shares).reshape(-1, 1))
        return (self.shared_expert(x) + routed.view(*chosen.shape, -1).sum(1)).view_as(hidden_states), scores


CLASSES: dict[str, type[nn.Module]] = {
    "Llama4TextMoe": ScaledInputs,
    "Llama4Router": SigmoidRouter,
    "Llama4TextExperts": TurnedExperts,
    "Step3p7Experts": ClampedExperts,
}
"""Our classes by the names of transformers'."""


def adapt(root: Any) -> None:
    """Give the modules of a tree that are of such a class ours."""
    adapt_classes(root, CLASSES)
