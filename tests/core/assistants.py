"""Tiny Gemma 4 models and assistants for them, made by transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load, save_file
from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4TextConfig

from core.model.assistant import ORDERING
from tests.core.families import SPREAD, make_model
from tests.core.mtp_heads import ADDS
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer

WINDOW, HIDDEN = 24, 64
CENTROIDS = "masked_embedding.centroids.weight"
ALTERNATING = ["sliding_attention", "full_attention"] * 2
EXPERTS, SHARED, ALIKE = "experts", "shared", "keys as values"
TARGETS: dict[str, dict[str, Any]] = {
    EXPERTS: {},
    SHARED: {"enable_moe_block": False, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
    ALIKE: {"enable_moe_block": False, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
}
"""Settings of the published targets: a mixture of experts, layers that share keys and values, values that are keys."""
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "sliding_window": WINDOW,
    "num_kv_shared_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "max_position_embeddings": 1024,
}  # fmt: skip
NONE: Mapping[str, Any] = MappingProxyType({})
CLUSTERS = {"use_ordered_embeddings": True, "num_centroids": 20, "centroid_intermediate_top_k": 5}


def make_target(folder: Path, kind: str = EXPERTS, **changes: Any) -> Path:
    """Write a tiny Gemma 4 with a tokenizer to `folder`."""
    settings = {"layer_types": ALTERNATING, "global_head_dim": 32, "vocab_size": VOCABULARY, "sliding_window": WINDOW,
                "vocab_size_per_layer_input": VOCABULARY, "tie_word_embeddings": False}  # fmt: skip
    return write_tokenizer(make_model("gemma4_text", folder, **(settings | TARGETS[kind] | changes)))


def make_assistant(
    folder: Path, kind: str = EXPERTS, dtype: torch.dtype = torch.float32, *, text: Mapping[str, Any] = NONE,
    **changes: Any,
) -> Path:  # fmt: skip
    """Write an assistant of random weights for a target of this kind to `folder`; `text`: settings of its layers."""
    torch.manual_seed(3)
    shared = {name: value for name, value in TARGETS[kind].items() if "key_value" in name or "k_eq" in name}
    config = Gemma4AssistantConfig(
        text_config=Gemma4TextConfig(**(TEXT | shared | text)), **({"backbone_hidden_size": HIDDEN} | changes)
    )
    model = Gemma4AssistantForCausalLM(config).to(dtype)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "norm" not in name:
                value.normal_(0, SPREAD)
        if model.masked_embedding is not None:
            model.masked_embedding.token_ordering.copy_(torch.randperm(config.text_config.vocab_size))
    model.save_pretrained(folder)
    return folder


def make_pair(
    folder: Path, dtype: torch.dtype = torch.float32, *, sizes: Mapping[str, Any] = NONE,
    text: Mapping[str, Any] = NONE, **changes: Any,
) -> tuple[Path, Path]:  # fmt: skip
    """Make a target and an assistant that agree: each token is followed by the next id, in both."""
    target = make_target(folder / "target", dtype=dtype, **sizes)
    width = sizes.get("hidden_size", HIDDEN)
    changes = {"backbone_hidden_size": width} | changes
    assistant = make_assistant(folder / "assistant", dtype=dtype, text={"hidden_size": width} | text, **changes)
    weights, own = (load((one / "model.safetensors").read_bytes()) for one in (target, assistant))
    table = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = own["model.embed_tokens.weight"] = table.roll(1, 0).contiguous()
    own["pre_projection.weight"] = torch.cat([torch.eye(width), torch.zeros(width, width)], 1).to(dtype)
    if CENTROIDS in own:
        own[ORDERING] = torch.arange(len(table))
        own[CENTROIDS] = own["model.embed_tokens.weight"].view(len(own[CENTROIDS]), -1, width).sum(1)
    for path, tensors in ((target, weights), (assistant, own)):
        silenced = {name: torch.zeros_like(one) if ADDS.search(name) else one for name, one in tensors.items()}
        save_file(silenced, path / "model.safetensors", {"format": "pt"})
    return target, assistant


def change_config(folder: Path, **changes: Any) -> Path:
    """Change settings in a model's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
    return folder
