"""The attention of Llama 4 with cosines and sines instead of complex numbers, and a norm for each of queries and keys.

So it has the parts and arguments of other families' attention, which `core.layers.fused_layers` recognises.
transformers' class computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.layers import attention
from core.layers.adapted_class import adapt_classes

JOINT_NORM, NORMS = "qk_norm", ("q_norm", "k_norm")


class HalfAngles(nn.Module):
    """Makes one angle for each pair of columns."""

    original_inv_freq: Tensor
    attention_scaling: float

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (1, M) -> cos and sin (1, M, D / 2) in fp32, on the device of x."""
        angles = position_ids[..., None].float() * self.original_inv_freq.to(x.device, torch.float32)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


class RealAttention(nn.Module):
    """Attention whose layers either turn queries and keys before their norms, or scale queries by their positions."""

    config: Any
    layer_idx: int
    head_dim: int
    scaling: float
    use_rope: int
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    @property
    def sliding_window(self) -> int | None:
        """The tokens that each chunk of the text holds in layers that see their own chunk only; None in others."""
        chunked = self.config.layer_types[self.layer_idx] == "chunked_attention"
        return int(self.config.attention_chunk_size) if chunked else None

    @property
    def first_scaled(self) -> int | None:
        """The first position whose queries are scaled; None if none are."""
        tuned = self.config.attn_temperature_tuning and not self.use_rope
        return int(self.config.floor_scale) - 1 if tuned else None

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None,
        cache: Any = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """(1, M, H) -> (1, M, H)."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (make(hidden_states).view(shape) for make in (self.q_proj, self.k_proj, self.v_proj))
        if self.use_rope:
            query, key = (turned(one, *position_embeddings) for one in (query, key))
        query, key = self._normed(query, key)
        if self.first_scaled is not None:
            query = self._scaled(query, 0 if cache is None else cache.get_seq_length(self.layer_idx))
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        seen, _ = attention.attend(self, query, key, value, attention_mask, scaling=self.scaling)
        return self.o_proj(seen.reshape(*hidden_states.shape[:-1], -1)), None

    def _normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        of_query, of_key = (self._modules.get(name) for name in NORMS)
        return (query if of_query is None else of_query(query)), (key if of_key is None else of_key(key))

    def _scaled(self, query: Tensor, start: int) -> Tensor:
        """Multiply queries (1, M, heads, D), the first of which is at position `start`."""
        positions = torch.arange(start, start + query.shape[1], device=query.device).float()
        steps = torch.floor((positions + 1) / self.config.floor_scale)
        scales: Tensor = torch.log1p(steps) * self.config.attn_scale + 1
        return (query * scales[:, None, None]).to(query.dtype)


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring columns of states (1, M, heads, D) by angles (1, M, D / 2), in fp32."""
    one, other = states[..., 0::2].float(), states[..., 1::2].float()
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.stack((one * cos - other * sin, other * cos + one * sin), -1).flatten(-2).to(states.dtype)


CLASSES: dict[str, type[nn.Module]] = {"Llama4TextRotaryEmbedding": HalfAngles, "Llama4TextAttention": RealAttention}
"""Our classes by the names of transformers'."""


def adapt(root: Any) -> None:
    """Give the modules of a tree that are of such a class ours, if the tree uses our attention."""
    if root.config._attn_implementation != attention.NAME:
        return
    for module in adapt_classes(root, CLASSES):
        if (norm := module._modules.pop(JOINT_NORM, None)) is not None:
            module._modules |= {name: type(norm)(norm.eps) for name in NORMS}
