"""All that replaces parts of a loaded tree on the CPU by fewer, faster calls, and the order in which this happens.

Each step recognises what earlier ones have put in: layers and experts need our norms, blocks of experts need fused
experts and routers, and decoder layers with a recurrent layer need that layer's own call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from core.layers import (
    fused_blocks,
    fused_experts,
    fused_layers,
    fused_mixtures,
    fused_recurrent,
    fused_routers,
    latent_attention,
    latent_layers,
    norms,
    recurrent_layers,
)
from core.layers.fused_experts import FusedExperts
from core.layers.fused_forward import FusedForward, LayerRun


class Taken(NamedTuple):
    """Replacements that keep their weights: of experts by module, and of decoder layers by number."""

    experts: dict[Any, FusedExperts]
    layers: dict[int, FusedForward]


def adopt(module: Any, layers: list[nn.Module]) -> list[LayerRun]:
    """Replace all that is ours in a tree with these decoder layers, whose linears are on the CPU.

    Returns the runs of layers that are computed together.
    """
    norms.adopt(module)
    fused_experts.adopt(module)
    fused_routers.adopt(module)
    fused_mixtures.adopt(module)
    runs = fused_layers.adopt(layers)
    recurrent_layers.adopt(module)
    fused_recurrent.adopt(module)
    fused_blocks.adopt(layers)
    latent_attention.adopt(module)
    latent_layers.adopt(module)
    return runs


def take(module: Any, layers: list[nn.Module]) -> Taken:
    """Restore all forwards before linears move to a device, and return the replacements that can still be used.

    Norms, and the deferred expansion of latents, work on a device, too, and stay.
    """
    taken = Taken(fused_experts.take(module), fused_layers.take(layers))
    _restore_forwards(module, layers)
    return taken


def release(module: Any, layers: Sequence[nn.Module]) -> None:
    """Restore all but the norms, and the experts, which go with their linears."""
    _restore_forwards(module, layers)
    latent_attention.release(module)


def _restore_forwards(module: Any, layers: Sequence[nn.Module]) -> None:
    latent_layers.release(module)
    fused_blocks.release(layers)
    fused_recurrent.release(module)
    recurrent_layers.release(module)
    fused_layers.release(layers)
    fused_mixtures.release(module)
    fused_routers.release(module)
