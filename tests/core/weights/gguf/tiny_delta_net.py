"""Gated delta networks as written by llama.cpp's converter: Qwen3.5 and Qwen3-Next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def qwen35(block: str, part: str, value: Tensor, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the GGUF name ("" = from the package's table) and the tensor of a parameter: value heads are interleaved
    over key heads."""
    keys, heads, width = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim

    def tiled(one: Tensor, size: int) -> Tensor:
        return one.reshape(keys, heads // keys, size, *one.shape[1:]).swapaxes(0, 1).reshape(one.shape)

    before = 2 * config.linear_key_head_dim * keys
    leaf = part.removeprefix("linear_attn.")
    if leaf == "A_log":
        yield f"{block}.ssm_a", tiled(-value.exp(), 1)
    elif leaf == "dt_bias":
        yield f"{block}.ssm_dt.bias", tiled(value, 1)
    elif leaf in ("in_proj_a.weight", "in_proj_b.weight"):
        yield "", tiled(value, 1)
    elif leaf == "in_proj_z.weight":
        yield "", tiled(value, width)
    elif leaf in ("in_proj_qkv.weight", "conv1d.weight"):
        flat = value.squeeze(1) if leaf == "conv1d.weight" else value
        yield "", torch.cat((flat[:before], tiled(flat[before:], width)))
    elif leaf == "out_proj.weight":
        yield "", tiled(value.t().contiguous(), width).t()
    else:
        yield "", _common(part, value)


def qwen3_next(block: str, part: str, value: Tensor, config: Any, *, split: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the same of Qwen3-Next, whose heads stay in their order. `split`: whether gates are separated from queries,
    keys and values, as in all but the first files."""
    leaf = part.removeprefix("linear_attn.")
    if leaf == "A_log":
        yield f"{block}.ssm_a", -value.exp()
    elif leaf == "dt_bias":
        yield f"{block}.ssm_dt.bias", value
    elif leaf == "in_proj_qkvz.weight" and split:
        heads, width = config.linear_num_key_heads, config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim // heads
        by_head = value.view(heads, -1, value.shape[1]).split((width, width, values, values), dim=1)
        query, key, inner, gates = (one.reshape(-1, value.shape[1]) for one in by_head)
        yield f"{block}.attn_qkv.weight", torch.cat((query, key, inner))
        yield f"{block}.attn_gate.weight", gates
    else:
        yield "", value.squeeze(1) if leaf == "conv1d.weight" else _common(part, value)


def _common(part: str, value: Tensor) -> Tensor:
    if part.endswith("shared_expert_gate.weight"):
        return value[0]
    return value + 1 if "norm" in part and part != "linear_attn.norm.weight" else value
