"""Dimensions of published models, to build and measure them without a download (`--shape NAME`).

Each entry holds keyword arguments for `transformers.AutoConfig.for_model(**SHAPES[name])`. Source: the config.json of
the model named in the comment. All weights of a shape are random and of the same type.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from core.errors import ModelNotFound
from core.sentence import sentence


def _llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int, **rest: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **rest,
    }


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _qwen(model_type: str, architecture: str, **rest: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "dtype": "bfloat16",
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    } | rest


_QWEN35: dict[str, Any] = {
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
}


def _qwen35_moe(layers: int, *, tied: bool) -> dict[str, Any]:
    return _qwen(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        num_hidden_layers=layers,
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=2,
        num_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        tie_word_embeddings=tied,
        **_QWEN35,
    )


def _qwen3_moe(layers: int, *, tied: bool) -> dict[str, Any]:
    return _qwen(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        num_hidden_layers=layers,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
    )


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }


def _opt(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_attention_heads": heads,
        "word_embed_proj_dim": hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }


SHAPES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        # meta-llama/Llama-3.2-1B-Instruct
        "llama-3.2-1b": _llama(
            16,
            2048,
            8192,
            32,
            8,
            128256,
            head_dim=64,
            max_position_embeddings=131072,
            rope_parameters=_llama3_rope(32.0),
            tie_word_embeddings=True,
        ),
        # meta-llama/Llama-3.1-8B-Instruct
        "llama-3.1-8b": _llama(
            32,
            4096,
            14336,
            32,
            8,
            128256,
            max_position_embeddings=131072,
            rope_parameters=_llama3_rope(8.0),
        ),
        # TinyLlama/TinyLlama-1.1B-Chat-v1.0
        "tinyllama-1.1b": _llama(22, 2048, 5632, 32, 4, 32000, max_position_embeddings=2048),
        # Qwen/Qwen2.5-0.5B-Instruct
        "qwen2.5-0.5b": _qwen(
            "qwen2",
            "Qwen2ForCausalLM",
            num_hidden_layers=24,
            hidden_size=896,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
        ),
        # Qwen/Qwen2.5-1.5B-Instruct
        "qwen2.5-1.5b": _qwen(
            "qwen2",
            "Qwen2ForCausalLM",
            num_hidden_layers=28,
            hidden_size=1536,
            intermediate_size=8960,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=32768,
        ),
        # Qwen/Qwen3-4B
        "qwen3-4b": _qwen(
            "qwen3",
            "Qwen3ForCausalLM",
            num_hidden_layers=36,
            hidden_size=2560,
            intermediate_size=9728,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
        ),
        # facebook/opt-1.3b, -6.7b, -13b, -30b
        "opt-1.3b": _opt(24, 2048, 32),
        "opt-6.7b": _opt(32, 4096, 32),
        "opt-13b": _opt(40, 5120, 40),
        "opt-30b": _opt(48, 7168, 56),
        # Qwen/Qwen3-30B-A3B, and a version with fewer layers for small machines
        "qwen3-30b-a3b": _qwen3_moe(48, tied=False),
        "qwen3-moe-8l": _qwen3_moe(8, tied=True),
        # openai/gpt-oss-20b, -120b
        "gpt-oss-20b": _gpt_oss(24, 32),
        "gpt-oss-120b": _gpt_oss(36, 128),
        # Qwen/Qwen3.6-35B-A3B without its vision tower, and a version with fewer layers for small machines
        "qwen3.6-35b-a3b": _qwen35_moe(40, tied=False),
        "qwen3.6-moe-4l": _qwen35_moe(4, tied=True),
        # Qwen/Qwen3.5-9B without its vision tower, with fewer layers
        "qwen3.5-8l": _qwen(
            "qwen3_5_text",
            "Qwen3_5ForCausalLM",
            num_hidden_layers=8,
            hidden_size=4096,
            intermediate_size=12288,
            num_attention_heads=16,
            num_key_value_heads=4,
            **_QWEN35,
        ),
        # ibm-granite/granite-4.0-h-tiny's Mamba-2 and attention layers, fewer of them
        "granite-4-h-8l": {
            "model_type": "granitemoehybrid",
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "dtype": "bfloat16",
            "num_hidden_layers": 8,
            "layer_types": ["mamba"] * 5 + ["attention"] + ["mamba"] * 2,
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "num_local_experts": 64,
            "num_experts_per_tok": 6,
            "intermediate_size": 512,
            "shared_intermediate_size": 1024,
            "mamba_n_heads": 48,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "vocab_size": 100352,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        # allenai/OLMoE-1B-7B-0924
        "olmoe-1b-7b": {
            "model_type": "olmoe",
            "architectures": ["OlmoeForCausalLM"],
            "dtype": "bfloat16",
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "vocab_size": 50304,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
        # google/gemma-4-26B-A4B-it without its vision tower
        "gemma-4-26b-a4b": {
            "model_type": "gemma4_text",
            "architectures": ["Gemma4ForCausalLM"],
            "dtype": "bfloat16",
            "num_hidden_layers": 30,
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "head_dim": 256,
            "global_head_dim": 512,
            "attention_k_eq_v": True,
            "sliding_window": 1024,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
            "vocab_size": 262144,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": True,
        },
        # zai-org/GLM-4.7-Flash
        "glm-4.7-flash": {
            "model_type": "glm4_moe_lite",
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "dtype": "bfloat16",
            "num_hidden_layers": 47,
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "moe_intermediate_size": 1536,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "n_routed_experts": 64,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "routed_scaling_factor": 1.8,
            "q_lora_rank": 768,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "vocab_size": 154880,
            "max_position_embeddings": 202752,
            "tie_word_embeddings": False,
        },
    }
)


def shape(name: str) -> dict[str, Any]:
    """Return a copy of one shape's configuration. Raises ModelNotFound, which lists the known names."""
    if name not in SHAPES:
        raise ModelNotFound(
            sentence("There is no shape named {}.", name), "", sentence("Use one of: {}.", ", ".join(SHAPES))
        )
    return dict(SHAPES[name])
