"""The settings of Gemma 4's GGUF files, which differ by layer, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def gemma4_settings(writer: Any, config: Any, prefix: Callable[[str], str]) -> None:
    """Write the settings with their names made by `prefix`."""
    layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    width = config.intermediate_size
    writer.add_array(prefix("attention.sliding_window_pattern"), slides)
    writer.add_array(prefix("attention.head_count_kv"), [layer.num_key_value_heads for layer in layers])
    if config.use_double_wide_mlp:
        wide = [width * (1 + (layer >= first_shared)) for layer in range(config.num_hidden_layers)]
        writer.add_array(prefix("feed_forward_length"), wide)
    else:
        writer.add_uint32(prefix("feed_forward_length"), width)
    writer.add_uint32(prefix("attention.shared_kv_layers"), config.num_kv_shared_layers)
    writer.add_uint32(prefix("embedding_length_per_layer_input"), config.hidden_size_per_layer_input)
    writer.add_uint32(prefix("attention.key_length"), layers[slides.index(False)].head_dim)
    writer.add_uint32(prefix("attention.key_length_swa"), layers[slides.index(True)].head_dim)
    writer.add_float32(prefix("rope.freq_base_swa"), config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.enable_moe_block:
        writer.add_uint32(prefix("expert_used_count"), config.top_k_experts)
