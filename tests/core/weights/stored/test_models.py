"""Quantised models other than dense text ones: experts and vision models, on any placement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.events import LoadOptions
from core.model.model_source import open_source
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from tests.core.composite import make_composite
from tests.core.families import make_model
from tests.core.greedy import random_prompt, transformers_tokens
from tests.core.tiny_tokenizer import write_tokenizer
from tests.core.weights.stored.packers import FORMATS, mxfp4_parts
from tests.core.weights.stored.tiny_stored import announce, greedy, reference, write_stored

PROMPT = random_prompt(40)


def write_gpt_oss(folder: Path) -> dict[str, Tensor]:
    """Write a model like OpenAI's own files: experts as blocks and scales, rows first; all else unquantised."""
    make_model("gpt_oss", folder)
    file = folder / "model.safetensors"
    exact, kept = load(file.read_bytes()), {}
    for name, value in exact.items():
        if value.dim() == 3:
            kept[f"{name}_blocks"], kept[f"{name}_scales"], worth = mxfp4_parts(value.transpose(1, 2))
            exact[name] = worth.transpose(1, 2)
        else:
            kept[name] = value
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file, {"format": "pt"})
    announce(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return exact


def test_gpt_oss_is_transformers_own_reading_of_the_same_files(tmp_path: Path) -> None:
    exact = write_gpt_oss(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = transformers_tokens(theirs, PROMPT, 24)
    assert len(set(expected)) > 5
    assert greedy(tmp_path, 24) == expected
    packed = open_source(tmp_path).packed
    for layer in range(3):
        value = exact[f"model.layers.{layer}.mlp.experts.down_proj"]
        for expert in range(4):
            weight = packed[f"model.layers.{layer}.mlp.experts.down_proj.{expert}"]
            assert weight.storage == "mxfp4"
            assert torch.equal(weight.dequantize(torch.float32), value[expert].t())


def test_experts_in_fp8_are_transformers_own_reading_of_the_same_files(tmp_path: Path) -> None:
    write_stored(tmp_path, FORMATS["fp8 in blocks"], "qwen3_moe")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = transformers_tokens(theirs, PROMPT, 24)
    assert len(set(expected)) > 5
    assert greedy(tmp_path, 24) == expected


@pytest.mark.parametrize("name", ["awq", "gptq", "int8 by row", "modelopt nvfp4", "gptq in order of activations"])
def test_experts_one_by_one_are_put_together_as_they_are(name: str, tmp_path: Path) -> None:
    exact = write_stored(tmp_path / "m", FORMATS[name], "qwen3_moe", moe_intermediate_size=64)
    assert greedy(tmp_path / "m", 16) == reference(tmp_path / "m", exact, PROMPT, 16)
    source = open_source(tmp_path / "m")
    experts = {linear for linear, storage in source.stored.items() if storage and "experts" in linear}
    # Permuted columns are only kept if a single matrix reads the input.
    assert len(experts) == (0 if "order" in name else 6)
    for linear in experts & {"model.layers.1.mlp.experts.gate_up_proj"}:
        parts = [exact[f"model.layers.1.mlp.experts.2.{part}_proj.weight"] for part in ("gate", "up")]
        assert torch.equal(source.packed[f"{linear}.2"].dequantize(torch.float32), torch.cat(parts))


@pytest.mark.parametrize("name", ["int8 by row", "fp8 in blocks"])
def test_the_language_half_of_a_model_that_sees(name: str, tmp_path: Path) -> None:
    make_composite("qwen2_5_vl", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text(encoding="utf-8"))
    exact, kept = load((tmp_path / "plain" / "model.safetensors").read_bytes()), {}
    for tensor, value in exact.items():
        if value.dim() == 2 and "embed" not in tensor and "lm_head" not in tensor:
            tensors, exact[tensor] = FORMATS[name].pack(value)
            kept |= {tensor.removesuffix(".weight") + end: part for end, part in tensors.items()}
        else:
            kept[tensor] = value
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({tensor: value.contiguous() for tensor, value in kept.items()}, tmp_path / "m" / "model.safetensors")
    save_file(exact, tmp_path / "plain" / "model.safetensors")
    announce(tmp_path / "m", FORMATS[name].settings)
    found = greedy(tmp_path / "m", 16)
    assert len(set(found)) > 3
    assert found == greedy(tmp_path / "plain", 16)


def loaded(folder: Path, **options: str) -> LoadedModel:
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder)
    *_, last = load_model(folder, LoadOptions(context=512, threads=1, **options))  # type: ignore[arg-type]
    assert isinstance(last, LoadedModel)
    return last


@pytest.mark.parametrize("vram", ["512KiB", "1MiB", "3MiB"])
@pytest.mark.parametrize("name", ["awq", "gptq", "compressed mxfp4", "fp8 in blocks", "gptq in order of activations"])
def test_a_split_between_cpu_and_gpu_changes_nothing(name: str, vram: str, tmp_path: Path) -> None:
    write_stored(tmp_path, FORMATS[name])
    alone, split = loaded(tmp_path), loaded(tmp_path, simulate_gpu=f"vram={vram},link=12GB/s")
    logits = [one.model.forward(PROMPT, one.cache, keep=len(PROMPT)) for one in (alone, split)]
    split.close()
    assert torch.cosine_similarity(logits[0].flatten(), logits[1].flatten(), dim=0) > 0.999


@pytest.mark.parametrize("name", ["awq", "fp8 in blocks", "gptq in order of activations"])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_the_second_load_maps_what_the_first_has_made(name: str, format: str, tmp_path: Path) -> None:
    write_stored(tmp_path, FORMATS[name])
    models = [loaded(tmp_path, format=format) for _ in range(2)]
    logits = [one.model.forward(PROMPT, one.cache, keep=len(PROMPT)) for one in models]
    assert torch.equal(*logits)
