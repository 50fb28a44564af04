"""The rotary angles of Phi-3.5 MoE without a decision by values in each pass, which cannot be traced or captured.

transformers multiplies cosines and sines by one number in short texts and by another in long ones, and turns both with
the frequencies of short ones, which it computes anew in each pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.layers.adapted_class import adapt_classes

SCALE, SCALES = "scale", ("short_mscale", "long_mscale")


class ScaledAngles(nn.Module):
    """Makes one angle for each column. The buffer `scale` holds the factor of the whole text."""

    config: Any
    original_inv_freq: Tensor
    scale: Tensor

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (1, M) -> cos and sin (1, M, D), of the type and on the device of x."""
        angles = position_ids[..., None].float() * self.original_inv_freq.to(x.device, torch.float32)
        both = torch.cat((angles, angles), -1)
        return (both.cos() * self.scale).to(x.dtype), (both.sin() * self.scale).to(x.dtype)


def adapt(root: Any) -> None:
    """Give the modules of a tree that make such angles our class."""
    for module in adapt_classes(root, {"PhimoeRotaryEmbedding": ScaledAngles}):
        scales = scales_of(module)
        short = torch.tensor([module.attention_scaling]) if scales is None else scales[0]
        module.register_buffer(SCALE, short, persistent=False)


def scales_of(module: ScaledAngles) -> tuple[Tensor, Tensor] | None:
    """Return the factors [1] of short and of long texts; None if all texts have the same."""
    said = module.config.rope_parameters
    if said["rope_type"] == "default":
        return None
    short, long = (torch.tensor([float(said[name])]) for name in SCALES)
    return short, long
