"""Tiny random vision and audio models, made by transformers from its own defaults at reduced sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.core.families import save_random
from tests.core.tiny_tokenizer import VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 16,
    "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "depth": 2, "num_heads": 2, "embed_dim": 32, "out_hidden_size": 32, "mlp_dim": 48, "image_size": 28,
    "patch_size": 14, "projection_dim": 32, "vision_output_dim": 32, "projector_input_dim": 32,
    "projector_output_dim": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1], "vision_feature_layer": -1, "d_model": 32, "encoder_layers": 1,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16, "mm_tokens_per_image": 4,
}  # fmt: skip
GEMMA4_TEXT: dict[str, Any] = {name: SIZES[name] for name in ("hidden_size", "vocab_size", "intermediate_size")} | {
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 24, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "max_position_embeddings": 1024,
}  # fmt: skip
OWN_CLASS = {
    "mistral3": "Mistral3", "llava": "Llava", "llava_onevision": "LlavaOnevision", "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe", "internvl": "InternVL",
    "smolvlm": "SmolVLM", "idefics3": "Idefics3", "gemma3": "Gemma3", "gemma4": "Gemma4", "paligemma": "PaliGemma",
    "qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe", "aya_vision": "AyaVision", "lfm2_vl": "Lfm2Vl", "ovis2": "Ovis2",
    "glm4v": "Glm4v", "llama4": "Llama4", "mllama": "Mllama", "qwen2_audio": "Qwen2Audio", "voxtral": "Voxtral",
    "kosmos-2.5": "Kosmos2_5",
}  # fmt: skip
"""Model types, and the prefixes of their class names."""


def make_composite(kind: str, folder: Path) -> Any:
    """Write a tiny random model of `kind` to `folder` as transformers saves it; return transformers' model."""
    torch.manual_seed(0)
    whole = getattr(transformers, f"{OWN_CLASS[kind]}ForConditionalGeneration")
    model = whole._from_config(_config(kind), dtype=torch.float32).eval()
    save_random(model, folder)
    return model


def _config(kind: str) -> Any:
    if kind == "gemma4":
        vision = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
        return CONFIG_MAPPING[kind](
            text_config=GEMMA4_TEXT, vision_config=vision, audio_config=None, image_token_id=310
        )
    config = CONFIG_MAPPING[kind]()
    _shrink(config)
    if kind == "internvl":
        config.vision_config.image_size, config.vision_config.patch_size = [28, 28], [14, 14]
    return config


def _shrink(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif name in SIZES and value is not None:
            setattr(config, name, SIZES[name])
        elif name == "layer_types" and value:
            config.layer_types = (sorted(set(value), key=value.index) * 2)[:2]
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY:
            setattr(config, name, VOCABULARY - 10)
        elif name == "rope_parameters" and value:
            _shrink_rope(config, value)


def _shrink_rope(config: Any, rope: dict[str, Any]) -> None:
    """Shrink the sections of picture positions: three parts that add up to half of the rotary dimensions."""
    if "mrope_section" in rope or config.model_type in ("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text"):
        pairs = int(8 * rope.get("partial_rotary_factor", 1))
        first = pairs // 4
        config.rope_parameters = rope | {"mrope_section": [first, first, pairs - 2 * first], "rope_type": "default"}
