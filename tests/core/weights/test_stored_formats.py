"""How published checkpoints declare that their weights are quantised, and what must not be mistaken for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import UnsupportedModel
from core.weights.safetensors_header import TensorInfo
from core.weights.stored_formats import StoredFormat, check_readable, read_sidecars, stored_format

Q = "model.layers.0.self_attn.q_proj"
E = "model.layers.0.mlp.experts"


def headers(**tensors: tuple[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape, 0, 0) for name, (dtype, shape) in tensors.items()}


PLAIN = headers(**{f"{Q}.weight": ("BF16", (64, 64)), "model.norm.weight": ("F32", (64,))})
SHOWN: dict[str, tuple[Mapping[str, TensorInfo], str]] = {
    "fp8 in blocks": (
        headers(**{f"{Q}.weight": ("F8_E4M3", (64, 64)), f"{Q}.weight_scale_inv": ("F32", (1, 1))}), "fp8",
    ),
    "fp8 cast only": (headers(**{f"{Q}.weight": ("F8_E5M2", (64, 64))}), "fp8"),
    "int8 by row": (headers(**{f"{Q}.weight": ("I8", (64, 64)), f"{Q}.weight_scale": ("BF16", (64, 1))}), "int8"),
    "fp8 experts": (headers(**{f"{E}.gate_up_proj": ("F8_E4M3", (4, 64, 64))}), "fp8"),
    "mxfp4": (
        headers(**{f"{E}.down_proj_blocks": ("U8", (4, 64, 2, 16)), f"{E}.down_proj_scales": ("U8", (4, 64, 2))}),
        "mxfp4",
    ),
    "mxfp8 scales": (headers(**{f"{Q}.weight_scale": ("F8_E8M0", (64,))}), "F8_E8M0"),
    "nvfp4": (headers(**{f"{Q}.weight": ("U8", (64, 32)), f"{Q}.weight_scale_2": ("F32", ())}), "nvfp4"),
    "gptq": (headers(**{f"{Q}.qweight": ("I32", (8, 64)), f"{Q}.g_idx": ("I32", (64,))}), "gptq"),
    "gptq without order": (headers(**{f"{Q}.qweight": ("I32", (8, 64)), f"{Q}.scales": ("F16", (1, 64))}), "gptq"),
    "awq": (headers(**{f"{Q}.qweight": ("I32", (64, 8)), f"{Q}.scales": ("F16", (1, 64))}), "awq"),
    "packed": (
        headers(**{f"{Q}.weight_packed": ("I32", (64, 8)), f"{Q}.weight_scale": ("BF16", (64, 1))}),
        "compressed-tensors",
    ),
    "nf4": (headers(**{f"{Q}.weight": ("U8", (2048, 1)), f"{Q}.weight.absmax": ("U8", (64,))}), "bitsandbytes"),
    "bitsandbytes 8": (headers(**{f"{Q}.weight": ("I8", (64, 64)), f"{Q}.SCB": ("F32", (64,))}), "bitsandbytes"),
    "mlx": (headers(**{f"{Q}.weight": ("U32", (64, 8)), f"{Q}.scales": ("BF16", (64, 1))}), "U32"),
    "aqlm": (headers(**{f"{Q}.codes": ("I16", (64, 8, 1)), f"{Q}.codebooks": ("F16", (1, 256, 1, 8))}), "aqlm"),
    "exl3": (headers(**{f"{Q}.trellis": ("I16", (4, 4, 48)), f"{Q}.suh": ("F16", (64,))}), "exllama"),
    "hqq": (headers(**{f"{Q}.W_q": ("U8", (32, 64))}), "hqq"),
    "not known yet": (headers(**{f"{Q}.weight": ("F6_E2M3", (64, 64))}), "F6_E2M3"),
}  # fmt: skip
UNREAD = ("mlx", "aqlm", "exl3", "hqq", "not known yet")
BESIDE = {
    "hf_quant_config.json": ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "modelopt"),
    "quantize_config.json": ({"bits": 4, "group_size": 128}, "gptq"),
    "quant_config.json": ({"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "awq"),
    "quantization_config.json": ({"bits": 4, "quant_method": "auto-round"}, "auto-round"),
}
ANNOUNCED: dict[str, tuple[dict[str, Any], str]] = {
    "usual": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "a word": ({"quantization_config": "4bit"}, "4bit"),
    "nameless": ({"quantization_config": {"bits": 4}}, "by an unnamed method"),
    "old name": ({"compression_config": {"format": "int-quantized"}}, "compressed-tensors"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
    "in the language model": ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_no_file_announces_shows_in_the_tensors(name: str) -> None:
    tensors, method = SHOWN[name]
    found = stored_format({"model_type": "llama"}, PLAIN | tensors)
    assert found.method == method
    assert found.shown_by in tensors
    if name not in UNREAD:
        check_readable(found)
        return
    with pytest.raises(UnsupportedModel, match="way that is not known"):
        check_readable(found)


@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_the_weights_announces_it(name: str, tmp_path: Path) -> None:
    content, method = BESIDE[name]
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    found = stored_format({}, SHOWN["gptq"][0], read_sidecars(tmp_path))
    assert found == StoredFormat(method, content, name)


@pytest.mark.parametrize("name", ANNOUNCED)
def test_config_announces_it(name: str) -> None:
    config, method = ANNOUNCED[name]
    found = stored_format(config, {})
    assert (found.method, found.shown_by) == (method, "config.json")


def test_an_announced_method_without_a_name_has_the_one_that_shows() -> None:
    assert stored_format({"quantization_config": {"bits": 4}}, SHOWN["awq"][0]).method == "awq"


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "compressed-tensors"])
def test_what_is_announced_and_not_done_is_plain(method: str) -> None:
    """Fine-tunes keep the quantisation settings of their base model, although their own weights are not quantised."""
    stored = stored_format({"quantization_config": {"quant_method": method}}, PLAIN)
    assert stored.is_plain
    check_readable(stored)


def test_a_method_that_does_not_show_is_believed() -> None:
    assert stored_format({"quantization_config": {"quant_method": "bitnet"}}, PLAIN).method == "bitnet"


@pytest.mark.parametrize(
    "tensors",
    [
        PLAIN,
        headers(**{"h.0.attn.bias": ("U8", (1, 1, 8, 8)), "h.0.attn.masked_bias": ("F32", ())}),
        headers(**{"embeddings.position_ids": ("I64", (1, 512)), "layers.0.rotary_emb.inv_freq": ("F32", (8,))}),
        headers(**{"model.layers.0.router.scale": ("BF16", (64,)), "model.layers.0.per_expert_scale": ("F32", (4,))}),
        headers(**{"model.layers.0.layer_scale": ("BF16", (64,)), "num_batches_tracked": ("I64", ())}),
    ],
)  # fmt: skip
def test_plain_weights_are_plain(tensors: Mapping[str, TensorInfo]) -> None:
    assert stored_format({"model_type": "gpt2"}, tensors).is_plain


@pytest.mark.parametrize("content", ["{", "[1]", "\ufeff", "[" * 100_000])
def test_a_damaged_file_beside_the_weights_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text(content, encoding="utf-8")
    assert read_sidecars(tmp_path) == {}
