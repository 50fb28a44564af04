"""Functions that derive transformers' settings from a GGUF file where renaming a key is not enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
SIGMOID = 2
"""The `expert_gating_func` of a sigmoid router."""
MAVERICKS_EXPERTS = 128

STANDS_STILL = 1e20
"""A RoPE factor this large means that the frequency does not rotate."""


@dataclass(frozen=True)
class Reading:
    """The settings of one file, with accessors for its architecture's; the names of its tensors; and `vectors`: the
    values of the few tensors that hold settings (RoPE factors)."""

    settings: Mapping[str, Any]
    tensors: Collection[str]
    vectors: Mapping[str, list[float]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.settings.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting of this architecture."""
        return self.settings.get(f"{self.architecture}.{key}", default)


Write = Callable[[Reading, Config], None]


def rope(file: Reading, config: Config) -> None:
    """Set the RoPE parameters: base, rotated part of a head, and scaling."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turning = file.get("rope.dimension_count", head)
    parameters: Config = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", 10000.0)}
    if turning < head:
        parameters["partial_rotary_factor"] = turning / head
    config["rope_parameters"] = parameters | _stretching(file, config)


def _stretching(file: Reading, config: Config) -> Config:
    kind = file.get("rope.scaling.type", "none")
    original = file.get("rope.scaling.original_context_length") or config["max_position_embeddings"]
    if factors := file.vectors.get("rope_freqs.weight"):
        # Llama 3.1 and later: one factor per frequency, the same for contexts of any length.
        return _factors(factors, factors, original, 1.0)
    if short := file.vectors.get("rope_factors_short.weight"):
        long = file.vectors.get("rope_factors_long.weight", short)
        return _factors(short, long, original, file.get("rope.scaling.attn_factor"))
    factor = file.get("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return _yarn(file, factor, original) if kind == "yarn" else {}


def _factors(short: list[float], long: list[float], original: int, attention: float | None) -> Config:
    found = {
        "rope_type": "longrope", "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    return found if attention is None else found | {"attention_factor": attention}


def _yarn(file: Reading, factor: float, original: int) -> Config:
    found = {
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
        "beta_fast": file.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": file.get("rope.scaling.yarn_beta_slow", 1.0),
    }  # fmt: skip
    if (multiplier := file.get("rope.scaling.yarn_log_multiplier")) is not None:
        found |= {"mscale": 10 * multiplier, "mscale_all_dim": 10 * multiplier}
    return found


def not_truncated(_: Reading, config: Config) -> None:
    """Disable `truncate`: gpt-oss scales RoPE without rounding the bounds."""
    config["rope_parameters"]["truncate"] = False


def llama4(file: Reading, config: Config) -> None:
    """Set the layers with experts, and what llama.cpp assumes: norms of queries and keys unless there are as many
    experts as in Maverick, and chunks and layers without positions unless the file says that it has no window."""
    layers = range(config["num_hidden_layers"])
    config["moe_layers"] = [layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" in file.tensors]
    config["use_qk_norm"] = config.get("num_local_experts") != MAVERICKS_EXPERTS
    if file.get("attention.sliding_window") == 0:
        config |= {"no_rope_layers": [1 for _ in layers], "attention_chunk_size": None}


def gemma3_rope(file: Reading, config: Config) -> None:
    """Set the RoPE parameters of Gemma 3: sliding-window layers have their own base and no scaling."""
    rope(file, config)
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10000.0)}
    config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    pattern = file.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        config["sliding_window_pattern"] = pattern


def gemma4(file: Reading, config: Config) -> None:
    """Set Gemma 4's two kinds of layers with their own head sizes and counts, shared keys and values, and experts."""
    layers, pattern = config["num_hidden_layers"], file.get("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, list):
        pattern = [(layer + 1) % pattern != 0 for layer in range(layers)]
    full = pattern.index(False)
    config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    config["global_head_dim"] = config["head_dim"]
    config["head_dim"] = file.get("attention.key_length_swa", config["head_dim"])
    heads, widths = (_by_layer(file, name, layers) for name in ("attention.head_count_kv", "feed_forward_length"))
    config["num_key_value_heads"], config["num_global_key_value_heads"] = heads[pattern.index(True)], heads[full]
    config["intermediate_size"], config["use_double_wide_mlp"] = widths[0], widths[-1] > widths[0]
    config["attention_k_eq_v"] = f"blk.{full}.attn_v.weight" not in file.tensors
    config["enable_moe_block"] = "num_experts" in config
    config["vocab_size_per_layer_input"] = config["vocab_size"]
    config["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10000.0)},
        "full_attention": {
            "rope_type": "proportional", "rope_theta": file.get("rope.freq_base", 1e6),
            "partial_rotary_factor": _turning(file),
        },
    }  # fmt: skip


def _by_layer(file: Reading, key: str, layers: int) -> list[int]:
    value = file.get(key)
    found = value if isinstance(value, list) else [value] * layers
    if len(found) != layers:
        raise ValueError(key)
    return found


def _turning(file: Reading) -> float:
    """Return the rotated fraction of a head: the factors of the other frequencies are practically infinite."""
    factors = file.vectors.get("rope_freqs.weight") or [1.0]
    return sum(factor < STANDS_STILL for factor in factors) / len(factors)


def gemma2_scale(_: Reading, config: Config) -> None:
    """Set the query scale, which the largest Gemma 2 (46 layers) does not derive from its head size."""
    _query_scale(config, largest=46)


def gemma3_scale(_: Reading, config: Config) -> None:
    """Set the query scale, which the largest Gemma 3 (62 layers) does not derive from its head size."""
    _query_scale(config, largest=62)


def _query_scale(config: Config, largest: int) -> None:
    whole = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = whole if config["num_hidden_layers"] == largest else config["head_dim"]


def delta_net(file: Reading, config: Config) -> None:
    """Set the value head size, given in total by the file, and the position sections (mrope)."""
    config["linear_value_head_dim"] = file.get("ssm.inner_size") // config["linear_num_value_heads"]
    sections = [section for section in file.get("rope.dimension_sections", ()) if section]
    if sections:
        config["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}


def deepseek(file: Reading, config: Config) -> None:
    """Set the head sizes of multi-head latent attention; the router's gating function tells V2 from V3."""
    key = file.get("attention.key_length_mla") or file.get("attention.key_length")
    config["qk_nope_head_dim"] = key - config["qk_rope_head_dim"]
    config["v_head_dim"] = file.get("attention.value_length_mla") or file.get("attention.value_length")
    config["num_key_value_heads"] = config["num_attention_heads"]
    config.setdefault("q_lora_rank", None)
    config["rope_parameters"].pop("partial_rotary_factor", None)
    if file.get("expert_gating_func") != SIGMOID:
        config["model_type"] = "deepseek_v2"
        groups = config.get("n_group") or 1
        config["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"


def biases(file: Reading, config: Config) -> None:
    """Set whether attention and MLP have biases, which shows in the tensors."""
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors


def qkv_biases(file: Reading, config: Config) -> None:
    """Set `use_qkv_bias` by whether the query has a bias."""
    config["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors


def any_bias(file: Reading, config: Config) -> None:
    """Set `use_bias` by whether the query has a bias."""
    config["use_bias"] = "blk.0.attn_q.bias" in file.tensors


def query_norm(file: Reading, config: Config) -> None:
    """Set `use_qk_norm` by whether the query has a norm."""
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in file.tensors


def falcon(file: Reading, config: Config) -> None:
    """Set the options of the larger Falcons: two norms before a layer, several key heads."""
    config["new_decoder_architecture"] = "blk.0.attn_norm_2.weight" in file.tensors
    config["multi_query"] = config["num_kv_heads"] == 1
