"""GGUF architectures as data: transformers' model type, settings, tensor names and layouts.

There is one `Family` per `general.architecture`. A setting or tensor that needs more than a new name refers to a small
function of `settings` or `layouts`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.weights.gguf import layouts as lay
from core.weights.gguf import settings as read
from core.weights.gguf.layouts import Layout
from core.weights.gguf.settings import Write

ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
HEAD_ENDS = {
    "nextn.eh_proj": "model.join.eh_proj", "nextn.enorm": "model.join.enorm", "nextn.hnorm": "model.join.hnorm",
    "nextn.shared_head_norm": "model.norm",
}  # fmt: skip
"""Tensors around the layer of an MTP head, by their names in the tree of core/model/mtp.py."""


@dataclass(frozen=True)
class Family:
    """One architecture. `config`: transformers' settings by the file's keys (without the architecture prefix).
    `fixed`: settings that no file has. `names` (within layers) and `ends` (outside layers): transformers' names by the
    file's, without `.weight` and `.bias`. `layouts`: by the file's names, how rows or values differ from transformers'.
    `more`: functions that derive further settings.
    """

    kind: str
    config: Mapping[str, str]
    names: Mapping[str, str]
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[Write, ...] = (read.rope,)
    ends: Mapping[str, str] = field(default_factory=lambda: ENDS)
    layer: str = "model.layers"
    variant: tuple[str, Mapping[str, str]] | None = None
    """A tensor of the first layer, and the names that replace others where the file has it."""
    experts_turned: bool = False
    """Whether transformers stores its experts as (inputs, outputs)."""

    def parts(self, tensors: Collection[str]) -> Mapping[str, str]:
        """Return `names` as they apply to a file with these tensors."""
        sign, others = self.variant or ("", {})
        return {**self.names, **others} if f"blk.0.{sign}.weight" in tensors else self.names


CONFIG = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}  # fmt: skip
EXPERTS = {
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}  # fmt: skip
ROUTED = {
    "expert_count": "n_routed_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size", "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor", "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group", "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
}  # fmt: skip
ATTENTION = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
DENSE = ATTENTION | MLP | {"ffn_norm": "post_attention_layernorm"}
MOE = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_up_proj*",
    "ffn_up_exps": "mlp.experts.gate_up_proj*",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj*", "ffn_down_exps": "mlp.experts.down_proj*",
}  # fmt: skip
"""A star marks parameters that are not the `weight` of a module."""
SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}  # fmt: skip
SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj", "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj", "exp_probs_b": "mlp.gate.e_score_correction_bias*",
}  # fmt: skip
LLAMA4 = ATTENTION | {
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj", "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_exps": "feed_forward.experts.gate_up_proj*", "ffn_up_exps": "feed_forward.experts.gate_up_proj*",
    "ffn_down_exps": "feed_forward.experts.down_proj*", "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj", "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}  # fmt: skip
LLAMA4_CONFIG = CONFIG | {
    "feed_forward_length": "intermediate_size_mlp", "expert_feed_forward_length": "intermediate_size",
    "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok",
}  # fmt: skip
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
HEADS = {"attn_q": lay.rotary_heads, "attn_k": lay.rotary_kv_heads}
GEMMA = ATTENTION | MLP | POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
GEMMA_NORMS = {
    "attn_norm": lay.minus_one, "ffn_norm": lay.minus_one, "post_attention_norm": lay.minus_one,
    "post_ffw_norm": lay.minus_one, "attn_q_norm": lay.minus_one, "attn_k_norm": lay.minus_one,
    "output_norm": lay.minus_one,
}  # fmt: skip
GEMMA_CONFIG = CONFIG | {
    "attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}  # fmt: skip
GEMMA4 = GEMMA | {
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2", "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2", "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale*", "ffn_down_exps.scale": "router.per_expert_scale*",
    "ffn_gate_exps": "experts.gate_up_proj*", "ffn_up_exps": "experts.gate_up_proj*",
    "ffn_gate_up_exps": "experts.gate_up_proj*", "ffn_down_exps": "experts.down_proj*",
    "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection", "post_norm": "post_per_layer_input_norm",
    "layer_output_scale": "layer_scalar*",
}  # fmt: skip
GEMMA4_CONFIG = {
    key: name for key, name in GEMMA_CONFIG.items() if key not in ("attention.head_count_kv", "feed_forward_length")
} | {
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input", "expert_count": "num_experts",
    "expert_used_count": "top_k_experts", "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
QWEN35 = ATTENTION | MLP | {
    "post_attention_norm": "post_attention_layernorm", "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z", "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
    "ssm_a": "linear_attn.A_log*", "ssm_dt": "linear_attn.dt_bias*",
}  # fmt: skip
QWEN35_CONFIG = CONFIG | {
    "full_attention_interval": "full_attention_interval", "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim", "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}  # fmt: skip
QWEN_NORMS = {
    "attn_norm": lay.minus_one, "post_attention_norm": lay.minus_one, "attn_q_norm": lay.minus_one,
    "attn_k_norm": lay.minus_one, "output_norm": lay.minus_one,
    "nextn.enorm": lay.minus_one, "nextn.hnorm": lay.minus_one, "nextn.shared_head_norm": lay.minus_one,
}  # fmt: skip
QWEN35_LAYOUTS = QWEN_NORMS | {
    "attn_qkv": lay.grouped_values_after_keys, "attn_gate": lay.grouped_values, "ssm_alpha": lay.grouped_heads,
    "ssm_beta": lay.grouped_heads, "ssm_conv1d": lay.grouped_convolution, "ssm_out": lay.grouped_columns,
    "ssm_a": lay.grouped_logarithm, "ssm_dt": lay.grouped_heads,
}  # fmt: skip
QWEN3_NEXT = QWEN35 | MOE | SHARED_EXPERT | {
    "attn_qkv": "linear_attn.in_proj_qkvz", "attn_gate": "linear_attn.in_proj_qkvz",
    "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba",
}  # fmt: skip
"""The first files have `ssm_in`, in transformers' order, instead of `attn_qkv` and `attn_gate`."""
QWEN3_NEXT_LAYOUTS = QWEN_NORMS | {
    "attn_qkv": lay.by_key_head, "attn_gate": lay.by_key_head, "ssm_conv1d": lay.convolution, "ssm_a": lay.logarithm,
    "ffn_gate_inp_shexp": lay.one_row,
}  # fmt: skip
DEEPSEEK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa", "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj", "attn_k_b": "self_attn.kv_b_proj", "attn_v_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
} | MLP | MOE | SHARED_EXPERTS  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", CONFIG, DENSE, HEADS, more=(read.rope, read.biases)),
    "llama4": Family("llama4_text", LLAMA4_CONFIG, LLAMA4, more=(read.rope, read.llama4), experts_turned=True),
    "qwen2": Family("qwen2", CONFIG, DENSE),
    "qwen3": Family("qwen3", CONFIG, DENSE),
    "qwen2moe": Family(
        "qwen2_moe", CONFIG | EXPERTS, DENSE | MOE | SHARED_EXPERT, {"ffn_gate_inp_shexp": lay.one_row},
        {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "qwen3moe": Family(
        "qwen3_moe", CONFIG | EXPERTS, DENSE | MOE,
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "qwen3next": Family(
        "qwen3_next", QWEN35_CONFIG | EXPERTS, QWEN3_NEXT, QWEN3_NEXT_LAYOUTS,
        {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}, (read.rope, read.delta_net),
    ),
    "qwen35": Family("qwen3_5_text", QWEN35_CONFIG, QWEN35, QWEN35_LAYOUTS, more=(read.rope, read.delta_net)),
    "qwen35moe": Family(
        "qwen3_5_moe_text", QWEN35_CONFIG | EXPERTS, QWEN35 | MOE | SHARED_EXPERT,
        QWEN35_LAYOUTS | {"ffn_gate_inp_shexp": lay.one_row}, more=(read.rope, read.delta_net),
    ),
    "gemma2": Family("gemma2", GEMMA_CONFIG, GEMMA, GEMMA_NORMS, more=(read.rope, read.gemma2_scale)),
    "gemma3": Family(
        "gemma3_text", GEMMA_CONFIG, GEMMA, GEMMA_NORMS, more=(read.gemma3_rope, read.gemma3_scale),
    ),
    "gemma4": Family(
        "gemma4_text", GEMMA4_CONFIG, GEMMA4, more=(read.gemma4,),
        ends=ENDS | {
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
    ),
    "phi3": Family(
        "phi3", CONFIG | {"attention.sliding_window": "sliding_window"},
        DENSE | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    "gpt-oss": Family(
        "gpt_oss",
        CONFIG | {
            "attention.sliding_window": "sliding_window", "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "intermediate_size",
        },
        ATTENTION | MOE | {
            "attn_sinks": "self_attn.sinks*", "ffn_gate_inp": "mlp.router",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
        {"ffn_gate_exps": lay.interleaved, "ffn_up_exps": lay.interleaved, "ffn_down_exps": lay.as_stored},
        more=(read.rope, read.not_truncated), experts_turned=True,
    ),
    "glm4moe": Family(
        "glm4_moe", CONFIG | ROUTED,
        DENSE | MOE | SHARED_EXPERTS | {"post_attention_norm": "post_attention_layernorm"},
        more=(read.rope, read.biases, read.query_norm),
    ),
    "deepseek2": Family(
        "deepseek_v3",
        {key: name for key, name in CONFIG.items() if key != "attention.key_length"} | ROUTED | {
            "attention.q_lora_rank": "q_lora_rank", "attention.kv_lora_rank": "kv_lora_rank",
            "rope.dimension_count": "qk_rope_head_dim",
        },
        DEEPSEEK, {"attn_k_b": lay.keys_and_values, "attn_v_b": lay.keys_and_values},
        more=(read.rope, read.deepseek),
    ),
    "olmo": Family("olmo", CONFIG | {"attention.clamp_kqv": "clip_qkv"}, DENSE, HEADS),
    "olmo2": Family("olmo2", CONFIG, ATTENTION | MLP | POST_NORMS),
    "granite": Family(
        "granite",
        CONFIG | {
            "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
        },
        DENSE, HEADS, more=(read.rope, read.biases),
    ),
    "stablelm": Family(
        "stablelm", CONFIG | LAYER_NORM | {"use_parallel_residual": "use_parallel_residual"}, DENSE,
        more=(read.rope, read.qkv_biases),
    ),
    "falcon": Family(
        "falcon",
        {key: name for key, name in CONFIG.items() if key != "attention.key_length"} | {
            "attention.head_count_kv": "num_kv_heads", "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "feed_forward_length": "ffn_hidden_size",
        },
        {
            "attn_norm": "input_layernorm", "attn_norm_2": "ln_attn", "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
        },
        {"attn_qkv": lay.by_kv_head}, {"alibi": False, "bias": False, "parallel_attn": True},
        (read.rope, read.falcon),
        {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h", ("attn_norm_2", {"attn_norm": "ln_mlp"}),
    ),
    "starcoder2": Family(
        "starcoder2", CONFIG | {"attention.layer_norm_epsilon": "norm_epsilon"},
        ATTENTION | {"ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        fixed={"sliding_window": None}, more=(read.rope, read.any_bias),
    ),
    "command-r": Family(
        "cohere", CONFIG | LAYER_NORM | {"logit_scale": "logit_scale"}, ATTENTION | MLP,
        more=(read.rope, read.query_norm),
    ),
}  # fmt: skip
"""By `general.architecture`. Mistral's files use llama; GLM-4.7-Flash's and Kimi's use deepseek2."""
