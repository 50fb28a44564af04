"""How a tensor's rows or values differ between a GGUF file and transformers' modules, and their conversion.

`rows` permutes the file's rows (blocks never span rows, so packed weights stay packed); `numbers` changes the values of
small tensors, and of tensors for which a row permutation is not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """`rows`: (configuration, number of rows) -> for each row of the module, its index in the file.
    `numbers`: (configuration, the file's tensors in fp32 by the end of their names) -> the module's tensor."""

    rows: Callable[[Config, int], Tensor] | None = None
    numbers: Callable[[Config, Mapping[str, Tensor]], Tensor] | None = None


def _one(parts: Mapping[str, Tensor]) -> Tensor:
    return next(iter(parts.values()))


def _halves_to_pairs(rows: int, heads: int) -> Tensor:
    """Rotary rows are interleaved pairs in the file, and two halves in the module."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _grouped(config: Config, width: int) -> Tensor:
    """Value heads are interleaved over key heads in the file, and grouped by key head in the module."""
    keys = config["linear_num_key_heads"]
    each = config["linear_num_value_heads"] // keys
    return torch.arange(keys * each * width).view(each, keys, width).transpose(0, 1).reshape(-1)


def _after_keys(config: Config, rows: int) -> Tensor:
    before = 2 * config["linear_key_head_dim"] * config["linear_num_key_heads"]
    return torch.cat((torch.arange(before), before + _grouped(config, config["linear_value_head_dim"])))


def _grouped_convolution(config: Config, parts: Mapping[str, Tensor]) -> Tensor:
    weight = _one(parts)
    return weight[_after_keys(config, len(weight))][:, None]


def _logarithm(_: Config, parts: Mapping[str, Tensor]) -> Tensor:
    return torch.log(-_one(parts).flatten())


def _grouped_logarithm(config: Config, parts: Mapping[str, Tensor]) -> Tensor:
    return _logarithm(config, parts)[_grouped(config, 1)]


def _columns(config: Config, parts: Mapping[str, Tensor]) -> Tensor:
    return _one(parts)[:, _grouped(config, config["linear_value_head_dim"])]


def _by_key_head(config: Config, rows: int) -> Tensor:
    """Rearrange all gates, queries, keys and values into, for each key head, its query, key, values and gates."""
    heads = config["linear_num_key_heads"]
    keys = heads * config["linear_key_head_dim"]
    gates, *others = torch.split(torch.arange(rows), [rows // 2 - keys, keys, keys, rows // 2 - keys])
    return torch.cat([part.view(heads, -1) for part in (*others, gates)], dim=1).reshape(-1)


def _interleave(_: Config, rows: int) -> Tensor:
    """Interleave the rows of gate and up, which the file stores one after another."""
    return torch.arange(rows).view(2, -1).t().reshape(-1)


def _keys_and_values(config: Config, parts: Mapping[str, Tensor]) -> Tensor:
    """Combine keys, stored transposed (heads, rank, columns), and values, stored as (heads, columns, rank)."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    keys = parts["attn_k_b"].view(heads, rank, -1).transpose(1, 2)
    values = parts["attn_v_b"].view(heads, -1, rank)
    return torch.cat((keys, values), dim=1).reshape(-1, rank)


def _by_kv_head(config: Config, rows: int) -> Tensor:
    """Rearrange all queries, keys and values into, for each key head, its queries, its key and its value."""
    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    width = rows // (heads + 2 * groups)
    queries, keys, values = torch.split(torch.arange(rows), [heads * width, groups * width, groups * width])
    parts = (queries.view(groups, -1), keys.view(groups, -1), values.view(groups, -1))
    return torch.cat(parts, dim=1).reshape(-1)


as_stored = Layout()
rotary_heads = Layout(rows=lambda config, rows: _halves_to_pairs(rows, config["num_attention_heads"]))
rotary_kv_heads = Layout(
    rows=lambda config, rows: _halves_to_pairs(rows, config.get("num_key_value_heads") or config["num_attention_heads"])
)
by_kv_head = Layout(rows=_by_kv_head)
interleaved = Layout(rows=_interleave)
grouped_heads = Layout(rows=lambda config, rows: _grouped(config, 1))
grouped_values = Layout(rows=lambda config, rows: _grouped(config, config["linear_value_head_dim"]))
grouped_values_after_keys = Layout(rows=_after_keys)
minus_one = Layout(numbers=lambda config, parts: _one(parts) - 1)
one_row = Layout(numbers=lambda config, parts: _one(parts).view(1, -1))
by_key_head = Layout(rows=_by_key_head)
"""For the file's `attn_gate` followed by `attn_qkv`."""
logarithm = Layout(numbers=_logarithm)
grouped_logarithm = Layout(numbers=_grouped_logarithm)
convolution = Layout(numbers=lambda config, parts: _one(parts)[:, None])
grouped_convolution = Layout(numbers=_grouped_convolution)
grouped_columns = Layout(numbers=_columns)
keys_and_values = Layout(numbers=_keys_and_values)
