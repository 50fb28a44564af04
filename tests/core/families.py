"""Tiny random models of many families, saved as real checkpoints, made by transformers itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.model.model_source import open_source
from core.model.trace import survey
from core.spec import ModelSpec

VOCABULARY = 199
# A wider spread than the usual initialisation, so that attention and experts matter and the tokens vary.
SPREAD = 0.3
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GQA: dict[str, Any] = {"num_key_value_heads": 2}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_FOUR: dict[str, Any] = {"num_hidden_layers": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON | _GQA | {"tie_word_embeddings": True},
    "mistral": _COMMON | _GQA | {"sliding_window": 24},
    "qwen2": _COMMON | _GQA,
    "qwen3": _COMMON | _GQA | {"head_dim": 16},
    "gemma3_text": _COMMON | _GQA | _FOUR | {
        "tie_word_embeddings": False, "head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 2,
    },
    "phi3": _COMMON | _GQA,
    "olmo2": _COMMON | _GQA,
    "granite": _COMMON | _GQA | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "falcon": {name: value for name, value in _COMMON.items() if name != "intermediate_size"} | {
        "multi_query": True, "tie_word_embeddings": False,
    },
    "gpt_neox": _COMMON | {"rotary_pct": 0.5},
    "opt": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 96,
        "word_embed_proj_dim": 64, "max_position_embeddings": 1024, "dropout": 0.0, "eos_token_id": 2,
    },
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 1024, "eos_token_id": 2},
    "mixtral": _COMMON | _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": _COMMON | _GQA | _MOE | {"num_experts": 4, "head_dim": 16, "decoder_sparse_step": 1},
    "qwen3_next": _COMMON | _GQA | _FOUR | _MOE | {
        "num_experts": 4, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 48,
    },
}  # fmt: skip

# Less usual caches: recurrent states of many kinds, compressed attention, sinks, chunked attention.
RARER_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": _COMMON | _GQA | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 24,
    },
    "deepseek_v3": _COMMON | _MOE | {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "v_head_dim": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
    # Attention of their own that includes positions.
    "mpt": {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 1024},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "xglm": {
        "vocab_size": VOCABULARY, "d_model": 64, "num_layers": 3, "attention_heads": 4, "ffn_dim": 96,
        "max_position_embeddings": 1024,
    },
    # Its attention says that it is not causal, and is always given a mask.
    "bigbird_pegasus": {
        "vocab_size": VOCABULARY, "d_model": 64, "decoder_layers": 3, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96, "encoder_layers": 3, "max_position_embeddings": 1024,
    },
    # Its mixtures have one single expert unless its configuration names another number.
    "hunyuan_v1_moe": _COMMON | _GQA | {"head_dim": 16},
    "cohere": _COMMON | _GQA | {"use_qk_norm": True},
    "smollm3": _COMMON | _GQA | {"no_rope_layers": [1, 0, 1]},
    "llama4_text": _COMMON | _GQA | {
        "num_local_experts": 4, "intermediate_size_mlp": 96, "head_dim": 16, "interleave_moe_layer_step": 1,
        "attention_chunk_size": 24,
    },
    "jamba": _COMMON | _GQA | {
        "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "lfm2": _COMMON | _GQA | {"layer_types": ["conv", "full_attention", "conv"]},
    "falcon_h1": _COMMON | _GQA | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "bamba": _COMMON | _GQA | {
        "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "attn_layer_indices": [1],
    },
    "nemotron_h": _COMMON | _GQA | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2},
    "qwen3_5_text": _COMMON | _GQA | _FOUR | {
        "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "qwen3_5_moe_text": _COMMON | _GQA | _FOUR | _MOE | {
        "num_experts": 4, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 48,
    },
    "granitemoehybrid": _COMMON | _GQA | {
        "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "shared_intermediate_size": 48,
    },
    "lfm2_moe": _COMMON | _GQA | _MOE | {
        "layer_types": ["conv", "full_attention", "conv"], "num_experts": 4, "num_dense_layers": 1,
    },
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "eos_token_id": 2},
    "falcon_mamba": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "eos_token_id": 2,
    },
    # A grouped product by a class that is named like a linear; a router that gets its correction as an argument.
    "deepseek_v4": _COMMON | {
        "num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 48, "index_head_dim": 16, "index_n_heads": 2,
        "index_topk": 8, "sliding_window": 24, "o_groups": 2, "o_lora_rank": 16,
    },
    "kimi_linear": _COMMON | _FOUR | {
        "num_key_value_heads": 4, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 16,
        "moe_intermediate_size": 48, "v_head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "minimax_m2": _COMMON | _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8},
    "mamba2": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "eos_token_id": 2,
        "num_heads": 8, "head_dim": 16, "n_groups": 2,
    },
}  # fmt: skip

_MLA: dict[str, Any] = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "v_head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
_GROUPED: dict[str, Any] = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}

# Further mixtures of experts: shared experts, gated ones, group-limited routing.
EXPERT_FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": _COMMON | _GQA | {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": _COMMON | _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _COMMON | _GQA | _MOE | {
        "num_experts": 4, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 1,
    },
    "qwen3_5_moe_text": _COMMON | _GQA | _FOUR | _MOE | {
        "num_experts": 4, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 48,
    },
    "glm4_moe": _COMMON | _GQA | _MOE | _GROUPED | {"first_k_dense_replace": 1, "head_dim": 16},
    "glm4_moe_lite": _COMMON | _MOE | _MLA | _GROUPED | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "deepseek_v2": _COMMON | _MOE | _MLA | _GROUPED | {
        "topk_method": "group_limited_greedy", "first_k_dense_replace": 1, "n_shared_experts": 1,
        "routed_scaling_factor": 1.5,
    },
    # Routers with a correction in a module of its own, and with a linear.
    "ernie4_5_moe": _COMMON | _GQA | {
        "head_dim": 16, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "afmoe": _COMMON | _GQA | _MOE | {
        "head_dim": 16, "num_experts": 4, "num_dense_layers": 1, "sliding_window": 24, "num_shared_experts": 1,
    },
    "gemma4_text": _COMMON | _GQA | _FOUR | {
        "head_dim": 16, "sliding_window": 24, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 48, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY,
    },
}  # fmt: skip

# Usual layers with attention of other kinds: positions not in all layers, of neighbouring columns, before the norms;
# soft caps.
ATTENTION_FAMILIES: dict[str, dict[str, Any]] = {
    "exaone4": _COMMON | _GQA | _FOUR | {"sliding_window": 24, "sliding_window_pattern": 2},
    "cohere2": _COMMON
    | _GQA
    | {
        "head_dim": 16,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "ministral3": _COMMON
    | _GQA
    | {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "lfm3": _COMMON | _GQA | {"head_dim": 16, "layer_types": ["conv", "full_attention", "conv"]},
    "gemma2": _COMMON
    | _GQA
    | {
        "head_dim": 16,
        "sliding_window": 24,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
    },
    "glm4": _COMMON | _GQA | {"head_dim": 16},
    "glm": _COMMON | _GQA | {"head_dim": 16},
    "ernie4_5": _COMMON | _GQA | {"head_dim": 16},
    "phimoe": _COMMON | _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": _COMMON | _GQA | {"head_dim": 16},
}

# Compressed keys and values without experts.
LATENT_FAMILIES: dict[str, dict[str, Any]] = {"minicpm3": _COMMON | _MLA, "youtu": _COMMON | _MLA}


def make_model(
    family: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    spread: float = SPREAD,
    **changes: Any,
) -> Path:
    """Write a tiny random model of `family` to `folder`, laid out like its published checkpoints."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](
        **((FAMILIES | RARER_FAMILIES | EXPERT_FAMILIES | ATTENTION_FAMILIES | LATENT_FAMILIES)[family] | changes)
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    save_random(model, folder, spread)
    return folder


def save_random(model: Any, folder: Path, spread: float = SPREAD) -> None:
    """Draw the model's matrices with this spread, and save it as transformers does."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "norm" not in name:
                value.normal_(0, spread)
    # No end-of-text token: the tests compare all requested tokens.
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Files:
    """A model folder, equal to every other one with the same content."""

    digest: str
    folder: Path = field(compare=False)


def files_of(folder: Path) -> Files:
    """Return a folder as a key of what was computed from its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    return Files(digest.hexdigest(), folder)


def reference_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Return the greedy tokens of transformers' `generate`, computed once for each model and prompt."""
    return [*_generated(files_of(folder), tuple(prompt), count)]


@cache
def _generated(files: Files, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    with torch.random.fork_rng(devices=[]):  # random numbers of a test do not depend on what others have asked
        model = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto").eval()
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=count,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


def surveyed(folder: Path, family: str) -> ModelSpec:
    """Return the specification of a model, found out once."""
    return _surveyed(files_of(folder), family)


@cache
def _surveyed(files: Files, family: str) -> ModelSpec:
    return survey(open_source(files.folder).module, family)
