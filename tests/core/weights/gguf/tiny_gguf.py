"""Tiny random models of every family as GGUF files, laid out as by llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.core.weights.gguf.tiny_delta_net import qwen3_next, qwen35
from tests.core.weights.gguf.tiny_gemma4 import gemma4_settings

VOCABULARY = 320
SPREAD = 0.3
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED: dict[str, Any] = {"num_experts": 4, "shared_expert_intermediate_size": 64}
_MLA: dict[str, Any] = {
    "n_routed_experts": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_shared_experts": 1,
}  # fmt: skip
_GDN: dict[str, Any] = {
    "num_hidden_layers": 4, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LLAMA4: dict[str, Any] = {
    "num_hidden_layers": 4, "num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 16,
    "tie_word_embeddings": False,
}  # fmt: skip
_FALCON: dict[str, Any] = {"intermediate_size": 256, "tie_word_embeddings": False}
_GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 24,
    "vocab_size_per_layer_input": VOCABULARY,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "tie_word_embeddings": False,
    "final_logit_softcapping": 30.0,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"tie_word_embeddings": True}),
    "llama-3.1": ("llama", "llama", {"rope_parameters": _LLAMA3}),
    "llama4": ("llama4", "llama4_text", _LLAMA4 | {"rope_parameters": _LLAMA3}),
    "llama4-maverick": (
        "llama4", "llama4_text",
        _LLAMA4 | {"num_local_experts": 128, "use_qk_norm": False, "interleave_moe_layer_step": 2},
    ),
    "llama4-dense": (
        "llama4", "llama4_text", _LLAMA4 | {"moe_layers": [], "no_rope_layers": [1] * 4, "attention_chunk_size": None},
    ),
    "mistral": ("llama", "mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", _MOE | _SHARED),
    "qwen3moe": ("qwen3moe", "qwen3_moe", _MOE | {"num_experts": 4, "head_dim": 16, "norm_topk_prob": True}),
    "qwen35": ("qwen35", "qwen3_5_text", _GDN),
    "qwen35moe": ("qwen35moe", "qwen3_5_moe_text", _GDN | _MOE | _SHARED),
    "qwen3next": ("qwen3next", "qwen3_next", _GDN | _MOE | _SHARED),
    "qwen3next-first": ("qwen3next", "qwen3_next", _GDN | _MOE | _SHARED),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16,
                          "tie_word_embeddings": False}),
    "gemma3": (
        "gemma3", "gemma3_text",
        {"head_dim": 16, "sliding_window": 24, "num_hidden_layers": 7, "query_pre_attn_scalar": 16,
         "tie_word_embeddings": False},
    ),
    "gemma4": (
        "gemma4", "gemma4_text",
        _GEMMA4 | {
            "num_hidden_layers": 6, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
        },
    ),
    "gemma4-moe": (
        "gemma4", "gemma4_text",
        _GEMMA4 | {
            "num_hidden_layers": 6, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
            "moe_intermediate_size": 32, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
    ),
    "phi3": ("phi3", "phi3", {"sliding_window": None}),
    "gpt-oss": (
        "gpt-oss", "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 24},
    ),
    "glm4moe": (
        "glm4moe", "glm4_moe",
        _MOE | {"n_routed_experts": 4, "head_dim": 16, "first_k_dense_replace": 1, "use_qk_norm": True,
                "attention_bias": True, "n_shared_experts": 1},
    ),
    "deepseek2": ("deepseek2", "deepseek_v3", _MOE | _MLA | {"n_group": 1, "topk_group": 1}),
    "deepseek2-v2": ("deepseek2", "deepseek_v2", _MOE | _MLA),
    "deepseek2-mla": ("deepseek2", "deepseek_v3", _MOE | _MLA | {"n_group": 1, "topk_group": 1}),
    "olmo": ("olmo", "olmo", {}),
    "olmo2": ("olmo2", "olmo2", {}),
    "granite": (
        "granite", "granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0,
                               "attention_multiplier": 0.2},
    ),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True}),
    "falcon": (
        "falcon", "falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-7b": ("falcon", "falcon", _FALCON | {"multi_query": True, "num_kv_heads": 1, "num_key_value_heads": 1}),
    "starcoder2": ("starcoder2", "starcoder2", {"sliding_window": None}),
    "command-r": ("command-r", "cohere", {}),
}  # fmt: skip
"""By name: the file's architecture, transformers' model type, and settings that differ from the common ones."""
KEYS: dict[str, str] = {
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "num_kv_heads": "attention.head_count_kv", "num_experts": "expert_count", "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length", "n_shared_experts": "expert_shared_count",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length", "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank", "first_k_dense_replace": "leading_dense_block_count",
    "n_group": "expert_group_count", "topk_group": "expert_group_used_count",
    "linear_conv_kernel_dim": "ssm.conv_kernel", "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count", "linear_num_value_heads": "ssm.time_step_rank",
    "sliding_window": "attention.sliding_window", "intermediate_size_mlp": "feed_forward_length",
    "intermediate_size": "feed_forward_length", "interleave_moe_layer_step": "interleave_moe_layer_step",
    "ffn_hidden_size": "feed_forward_length",
}  # fmt: skip
FLOATS: dict[str, str] = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon", "norm_epsilon": "attention.layer_norm_epsilon",
    "routed_scaling_factor": "expert_weights_scale", "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale", "logit_scale": "logit_scale",
    "final_logit_softcapping": "final_logit_softcapping", "attn_logit_softcapping": "attn_logit_softcapping",
}  # fmt: skip
GEMMA4 = {
    "layer_scalar": "layer_output_scale.weight",
    "router.scale": "ffn_gate_inp.scale",
    "per_expert_scale": "ffn_down_exps.scale",
}
TURNED = ("gpt-oss", "llama4")
"""Models whose experts transformers stores as (inputs, outputs)."""
SHORT = {"experts.gate_up_proj": "ffn_gate_up_exps", "experts.down_proj": "ffn_down_exps"}
Tensors = dict[str, Tensor]


def make_model(name: str, seed: int = 0) -> Any:
    """Make a tiny random transformers model."""
    torch.manual_seed(seed)
    _, kind, changes = MODELS[name]
    config = CONFIG_MAPPING[kind](**(_COMMON | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() > 1 and "norm" not in key:
                value.normal_(0, SPREAD)
            elif key.endswith(("bias", "sinks")) or "norm" in key:
                value.add_(torch.randn_like(value) * 0.1)
            if "norm" in key:  # Some families' files store them plus one; that rounding is not the reader's fault.
                value.add_(1).sub_(1)
    return model


def write_gguf(
    name: str, model: Any, path: Path, kind: Any = None, *, add: Callable[[Any], None] | None = None,
    behind: Tensors | None = None, others: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write the model as a file, with linears quantised as `kind` (a GGMLQuantizationType) and all else in F32.

    `add` writes further metadata; `behind`: tensors of an MTP layer after the last one; `others`: other kinds by the
    ends of names, without `.weight`.
    """
    architecture = MODELS[name][0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32(f"{architecture}.block_count", model.config.num_hidden_layers + bool(behind))
    if behind:
        writer.add_uint32(f"{architecture}.nextn_predict_layers", 1)
    _settings(writer, model.config, architecture, name)
    write_vocabulary(writer)
    if add is not None:
        add(writer)
    for key, tensor in (file_tensors(name, model) | (behind or {})).items():
        data = tensor.float().contiguous().numpy()
        own = (others or {}).get(key.split(".")[-2], kind)
        if own is None or tensor.dim() < 2 or tensor.shape[-1] % 32 or "ffn_gate_inp" in key:
            writer.add_tensor(key, data)
        else:
            writer.add_tensor(key, gguf.quants.quantize(data, own), raw_dtype=own)
    finish(writer)
    return path


def finish(writer: Any) -> None:
    """Write everything that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_settings(source: Any, writer: Any) -> None:
    """Copy all metadata of a file that was read."""
    for name, entry in source.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = entry.types
            writer.add_key_value(name, entry.contents(), kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)


def write_vocabulary(writer: Any, template: str | None = None) -> None:
    """Write a byte-level vocabulary with a few merges and control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(ByteLevel.alphabet())
    merges = ["Ġ t", "h e", "Ġt he", "o n"]
    tokens = [*special, *letters, *(merge.replace(" ", "") for merge in merges)]
    tokens += [f"<unused{number}>" for number in range(VOCABULARY - len(tokens))]
    kinds = [3] * len(special) + [1] * (len(letters) + len(merges))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [5] * (VOCABULARY - len(kinds)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    if template is not None:
        writer.add_chat_template(template)


def file_tensors(name: str, model: Any) -> Tensors:
    """Return the file's tensors by their GGUF names, laid out as by the converter."""
    architecture = MODELS[name][0]
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found: Tensors = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for theirs, tensor in laid_out(name, key, value.detach().clone(), model.config):
            found[theirs or named(names, key)] = tensor
    if architecture == "gemma4":
        half = model.config.per_layer_config["full_attention"].head_dim // 2
        found["rope_freqs.weight"] = torch.tensor([1.0] * (half // 4) + [1e30] * (half - half // 4))
        for layer in range(model.config.num_hidden_layers)[-model.config.num_kv_shared_layers :]:
            # Published files have them, although nothing reads them.
            found.setdefault(f"blk.{layer}.attn_k.weight", torch.randn(32, model.config.hidden_size))
    if "rope_parameters" in MODELS[name][2]:
        found["rope_freqs.weight"] = _llama3_factors(model.config)
    return found


def named(names: Any, key: str) -> str:
    """Return the GGUF name of a parameter from the package's table, which lacks the head of tied models."""
    if key == "lm_head.weight":
        return "output.weight"
    found = names.get_name(key, try_suffixes=(".weight", ".bias"))
    assert found is not None, key
    return str(found)


def laid_out(name: str, key: str, value: Tensor, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Return the GGUF name ("" = from the package's table) and the tensor of a parameter."""
    layer = key.split(".layers.")[1].split(".")[0] if ".layers." in key else ""
    part = key.rpartition(f".layers.{layer}.")[2] if layer else key
    if ".experts." in key:
        yield from _experts(f"blk.{layer}", part, value, name)
    elif part.endswith("e_score_correction_bias"):
        yield f"blk.{layer}.exp_probs_b.bias", value
    elif part.endswith("self_attn.sinks"):
        yield f"blk.{layer}.attn_sinks.weight", value
    elif name.startswith(("llama", "mistral", "granite", "olmo")) and MODELS[name][0] not in ("llama4", "olmo2"):
        yield "", _pairs(part, value, config)
    elif name.startswith("qwen35"):
        yield from qwen35(f"blk.{layer}", part, value, config)
    elif name.startswith("qwen3next"):
        yield from qwen3_next(f"blk.{layer}", part, value, config, split=name == "qwen3next")
    elif name.startswith("gemma4"):
        own = {f".{key}": theirs for key, theirs in GEMMA4.items()}
        end = next((theirs for key, theirs in own.items() if f".{part}".endswith(key)), "")
        yield f"blk.{layer}.{end}" if end else "", value
    elif name.startswith("gemma"):
        yield ("", value + 1) if "norm" in part else ("", value)
    elif name == "falcon" and part.endswith("query_key_value.weight"):
        yield "", _falcon(value, config)
    elif name == "deepseek2-mla" and part.endswith("kv_b_proj.weight"):
        yield from _mla(f"blk.{layer}", value, config)
    else:
        yield "", value


def _pairs(part: str, value: Tensor, config: Any) -> Tensor:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[one] for one in heads if one in part), None)
    if count is None:
        return value
    return value.reshape(count, 2, len(value) // count // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _experts(block: str, part: str, value: Tensor, name: str) -> Iterator[tuple[str, Tensor]]:
    suffix = ".bias" if part.endswith("_bias") else ".weight"
    turned = name.startswith(TURNED) and suffix == ".weight"
    value = value.transpose(1, 2).contiguous() if turned else value
    if "down_proj" in part:
        yield f"{block}.ffn_down_exps{suffix}", value
        return
    gate, up = (value[:, ::2], value[:, 1::2]) if name == "gpt-oss" else value.chunk(2, dim=1)
    yield f"{block}.ffn_gate_exps{suffix}", gate.contiguous()
    yield f"{block}.ffn_up_exps{suffix}", up.contiguous()


def _falcon(value: Tensor, config: Any) -> Tensor:
    groups, heads = config.num_kv_heads, config.num_attention_heads
    split = value.view(groups, heads // groups + 2, -1, value.shape[1])
    return torch.cat([part.reshape(-1, value.shape[1]) for part in (split[:, :-2], split[:, -2], split[:, -1])])


def _mla(block: str, value: Tensor, config: Any) -> Iterator[tuple[str, Tensor]]:
    heads = value.view(config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, -1)
    keys, values = heads.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
    yield f"{block}.attn_k_b.weight", keys.transpose(1, 2).contiguous()
    yield f"{block}.attn_v_b.weight", values.contiguous()


def _llama3_factors(config: Any) -> Tensor:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    dimension = config.hidden_size // config.num_attention_heads
    plain = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, dimension, 2).float() / dimension)
    return plain / stretched


def _settings(writer: Any, config: Any, architecture: str, name: str) -> None:
    config.allow_global_per_layer_attribute_access = True  # settings that differ by layer are written separately

    def prefix(key: str) -> str:
        return f"{architecture}.{key}"

    for table, add in ((KEYS, writer.add_uint32), (FLOATS, writer.add_float32)):
        written = {"attention.head_count_kv", "feed_forward_length"} if architecture == "gemma4" else set()
        for key, theirs in table.items():
            value = getattr(config, key, None)
            if value is not None and theirs not in written:
                written.add(theirs)
                add(prefix(theirs), value)
    rope = config.rope_parameters
    theta = rope.get("full_attention", rope)
    writer.add_float32(prefix("rope.freq_base"), theta["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_uint32(prefix("rope.dimension_count"), int(head * theta.get("partial_rotary_factor", 1.0)))
    if architecture == "gemma4":
        gemma4_settings(writer, config, prefix)
        return
    if architecture == "llama4":
        writer.add_uint32(prefix("expert_feed_forward_length"), config.intermediate_size)
        if config.attention_chunk_size is None:
            writer.add_uint32(prefix("attention.sliding_window"), 0)
    if name == "gpt-oss":
        writer.add_string(prefix("rope.scaling.type"), "yarn")
        writer.add_float32(prefix("rope.scaling.factor"), rope["factor"])
        writer.add_uint32(prefix("rope.scaling.original_context_length"), rope["original_max_position_embeddings"])
    _more_settings(writer, config, prefix, head)


def _more_settings(writer: Any, config: Any, prefix: Callable[[str], str], head: int) -> None:
    if hasattr(config, "qk_nope_head_dim"):
        writer.add_uint32(prefix("attention.key_length"), config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_uint32(prefix("attention.value_length"), config.v_head_dim)
        writer.add_uint32(prefix("expert_gating_func"), 2 if config.model_type == "deepseek_v3" else 1)
    else:
        writer.add_uint32(prefix("attention.key_length"), head)
    if hasattr(config, "linear_value_head_dim"):
        writer.add_uint32(prefix("ssm.inner_size"), config.linear_value_head_dim * config.linear_num_value_heads)
        writer.add_uint32(prefix("full_attention_interval"), 4)
    if hasattr(config, "norm_topk_prob"):
        writer.add_bool(prefix("expert_weights_norm"), config.norm_topk_prob)
    if hasattr(config, "use_parallel_residual"):
        writer.add_bool(prefix("use_parallel_residual"), config.use_parallel_residual)


__all__ = [
    "MODELS", "VOCABULARY", "copy_settings", "file_tensors", "finish", "laid_out", "make_model", "named", "write_gguf",
]  # fmt: skip
