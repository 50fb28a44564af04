"""Tiny random models of every kind that transformers can generate text with, made from its configuration classes.

The defaults of a kind's configuration are made small, field by field, and its lists of layers keep one layer of each
kind that occurs in them. Kinds of `tests.core.families` are those of the tests.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.core.families import EXPERT_FAMILIES, FAMILIES, LATENT_FAMILIES, RARER_FAMILIES, VOCABULARY, save_random

_ALL = FAMILIES | RARER_FAMILIES | EXPERT_FAMILIES | LATENT_FAMILIES
MOST_PARAMETERS = 40_000_000
SIZES: dict[str, int] = {
    # width
    "vocab_size": VOCABULARY, "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64,
    "embedding_size": 64, "word_embed_proj_dim": 64, "embedding_dim": 64, "d_embed": 64, "lru_width": 64,
    "intermediate_size": 96, "intermediate_size_mlp": 96, "ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
    "d_ff": 96, "n_inner": 96, "dim_ff": 96, "d_inner": 96, "ffn_hidden_size": 96, "feed_forward_proj_dim": 96,
    "dense_intermediate_size": 96, "hidden_size_global": 64, "hidden_size_per_layer_input": 8, "mlp_dim": 96,
    # depth
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 2, "encoder_layers": 2,
    "depth": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_blocks": 4, "num_mem_blocks": 2,
    "num_nextn_predict_layers": 0, "num_kv_shared_layers": 2, "max_window_layers": 2, "laurel_rank": 8,
    "altup_num_inputs": 2, "num_mtp_modules": 0, "emb_dim": 64, "encoder_hash_byte_group_vocab": 64,
    # attention
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 2,
    "num_query_groups": 2, "kv_n_heads": 2, "head_dim": 16, "global_head_dim": 16, "attention_head_dim": 16,
    "swa_head_dim": 16, "swa_v_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "d_kv": 16,
    "attention_hidden_size": 64, "sliding_window": 24, "sliding_window_size": 24, "attention_window_size": 24,
    "attention_chunk_size": 24, "local_attention_window": 24, "window_size": 24, "rotary_dim": 8, "kv_channels": 16,
    "q_lora_rank": 32, "kv_lora_rank": 16, "v_head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "qk_head_dim": 24, "o_lora_rank": 16, "o_groups": 2, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8,
    "index_num_heads": 2, "block_size": 8, "chunk_size": 16, "sliding_window_pattern": 2,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "top_k_experts": 2, "moe_topk": 2, "moe_top_k": 2, "moe_k": 2, "zero_expert_num": 2,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48, "shared_intermediate_size": 48, "expert_ffn_hidden_size": 48,
    "moe_shared_expert_intermediate_size": 48, "moe_latent_size": 32, "moe_hidden_size": 64, "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "moe_layer_start_index": 1, "interleave_moe_layer_step": 1,
    "n_expert_groups": 1, "num_group": 1,
    # recurrent layers
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "state_size": 16, "ssm_state_size": 16, "mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_ssm": 64, "n_mamba_heads": 2, "mamba_n_groups": 1,
    "n_groups": 2, "mamba_ngroups": 1, "mamba_headdim": 16, "adapter_rank": 8, "mamba_dt_rank": 4, "time_step_rank": 4,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    # pictures and speech
    "image_size": 28, "patch_size": 14, "projection_dim": 32, "out_hidden_size": 64, "vision_output_dim": 64,
    "num_position_embeddings": 16, "mm_tokens_per_image": 4, "num_mel_bins": 16, "projector_hidden_size": 64,
    "projection_hidden_size": 64, "projector_input_dim": 64, "projector_output_dim": 64, "text_hidden_size": 64,
    "max_position_embeddings": 1024, "n_positions": 1024, "max_seq_len": 1024, "context_length": 1024,
    "vocab_size_per_layer_input": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Fields of configurations, and the values that replace larger ones."""
LATENT: dict[str, int] = {"num_key_value_heads": 4, "head_dim": 8}
"""Fields of compressed attention: no groups of heads, and `head_dim` is the rotary part."""
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]}
BY_KIND: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 189, "IMGIMGAZ": 188}},
    "cohere_compass_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": None},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3": {"vocabulary_map": {"<image>": 189, "<|extra_200|>": 187, "<|visual token 000000|>": 188}},
    "ernie4_5_vl_moe_text": {"rope_parameters": _ROPE},
    "glm5_next_text": {"num_key_value_heads": 4, "index_topk": 32},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "hy_v4_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "radio": {"video_temporal_patch_size": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_vocab_size_base": 64,
        "heads_per_ngram": 2, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2, "hc_lowrank": 16,
        "eos_token_id": 2,
    },
}  # fmt: skip
"""What a kind, or a part of one, needs besides, because its fields depend on each other or have no usable default."""


def kinds() -> list[str]:
    """Return all model types that transformers lists as causal, or as answering pictures and text with text."""
    return list(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def make_kind(kind: str, folder: Path) -> Any:
    """Write a tiny random model of `kind` to `folder` as transformers saves it; return the class that it is of."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**(_ALL[kind] if kind in _ALL else smaller(CONFIG_MAPPING[kind], kind)))
    family = _class_of(config)
    with torch.device("meta"):
        count = sum(value.numel() for value in family.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters are not tiny")
    model = family.from_config(config, dtype=torch.float32).eval()
    save_random(model, folder)
    return type(model)


def _class_of(config: Any) -> Any:
    """Return the automatic class that checkpoints are published in: the whole model's, if there is one."""
    whole = type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return auto.AutoModelForImageTextToText if whole else auto.AutoModelForCausalLM


def smaller(cls: Any, kind: str = "") -> dict[str, Any]:
    """Return arguments for a configuration class: its defaults, made small."""
    default = cls()
    given = {name: _small(name, value) for name, value in vars(default).items() if _can_shrink(name, value)}
    accepted = inspect.signature(cls.__init__).parameters.keys() | default.attribute_map.values()
    latent = LATENT if "kv_lora_rank" in given else {}
    given |= {name: value for name, value in latent.items() if name in given}
    return {name: value for name, value in given.items() if name in accepted} | _layers(default) | BY_KIND.get(kind, {})


def _can_shrink(name: str, value: Any) -> bool:
    if isinstance(value, PreTrainedConfig):
        return True
    if name == "rope_parameters":
        return isinstance(value, dict) and "mrope_section" in value
    number = isinstance(value, int) and not isinstance(value, bool)
    too_large = number and name.endswith(("token_id", "token_index", "_idx")) and value >= VOCABULARY
    return too_large or (number and name in SIZES and value > SIZES[name])


def _small(name: str, value: Any) -> Any:
    if isinstance(value, PreTrainedConfig):
        return smaller(type(value), value.model_type) | {"model_type": value.model_type}
    if isinstance(value, dict):
        pairs = int(8 * value.get("partial_rotary_factor", 1))
        return value | {"mrope_section": [pairs // 4, pairs // 4, pairs - 2 * (pairs // 4)]}
    return SIZES.get(name, VOCABULARY - 10)


def _layers(default: Any) -> dict[str, Any]:
    """Return the lists with one entry a layer, with each combination that occurs in them twice; no lists, no entry."""
    count = getattr(default, "num_hidden_layers", None)
    lists = {
        name: value for name, value in vars(default).items() if isinstance(value, list | tuple) and len(value) == count
    }
    if not lists or not count:
        return {}
    rows = [tuple(map(str, row)) for row in zip(*lists.values(), strict=True)]
    first = [rows.index(row) for row in dict.fromkeys(rows)]
    chosen = sorted(first * 2) if len(first) == 1 else first * 2
    field = default.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return {name: [value[i] for i in chosen] for name, value in lists.items()} | {field: len(chosen)}
