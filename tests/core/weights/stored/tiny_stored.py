"""Tiny models whose linears are quantised in a format, and transformers' model with the values that they represent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.events import Prefill, Sampling, never
from core.generation.generate import generate
from core.generation.sampler import TokenSampler, resolve
from core.kernels.autotune import KernelTable, Timing
from core.layers.kv_cache import KVCache
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import HostPlacement
from core.model.postponed import Postponed, untied
from core.model.spec_cache import specification
from core.spec import BUCKET_NAMES, LAYOUTS, Format
from tests.core.families import make_model
from tests.core.greedy import GREEDY, random_prompt, transformers_tokens
from tests.core.weights.stored.packers import Format as Stored

LINEAR = re.compile(r"(_proj|experts\.\d+\.w\d)\.weight$")
SIZES: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 2, "head_dim": 48}
"""Rows and columns that are not multiples of 128."""


def write_stored(folder: Path, stored: Stored, family: str = "llama", **changes: Any) -> dict[str, Tensor]:
    """Write a model with quantised linears; return the weights that its files represent, by name."""
    sizes = SIZES if family == "llama" else {}
    make_model(family, folder, **(sizes | changes))
    file = folder / "model.safetensors"
    exact, kept = load(file.read_bytes()), {}
    for name, value in exact.items():
        if LINEAR.search(name):
            tensors, exact[name] = stored.pack(value.float())
            kept |= {name.removesuffix(".weight") + end: tensor for end, tensor in tensors.items()}
        else:
            kept[name] = value
    save_file({name: tensor.clone().contiguous() for name, tensor in kept.items()}, file)
    announce(folder, stored.settings)
    return exact


def announce(folder: Path, settings: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content = json.dumps(config | {"quantization_config": settings})
    (folder / "config.json").write_text(content, encoding="utf-8")


def reference(folder: Path, exact: dict[str, Tensor], prompt: list[int], count: int) -> list[int]:
    """Return the greedy tokens of transformers' `generate` with these weights."""
    plain = folder.parent / "plain"
    plain.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")
    (plain / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in exact.items()}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    return transformers_tokens(AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval(), prompt, count)


def greedy(folder: Path, count: int, prompt: list[int] | None = None, format: Format = "bf16") -> list[int]:
    """Return our greedy tokens, with all products in fp32 whatever the weights' storage."""
    source = open_source(folder)
    spec = specification(source.module, source.name, folder / "cache", source.stored, source.stored_as)
    postponed = Postponed(() if spec.mapped(format) else untied(source.module, spec.linears))
    list(fill(source.module, source.weights, postponed))
    weights = HostWeights(source, spec, format, in_fp32(), folder / "cache", postponed)
    list(weights.make())
    model = LanguageModel(source.module, HostPlacement(source.module, weights))
    sampler = TokenSampler(resolve(GREEDY, Sampling()))
    steps = generate(model, KVCache(source.module.config, 512), prompt or random_prompt(40), sampler, never)
    drawn = (step.id for step in steps if not isinstance(step, Prefill))
    return [id for id, _ in zip(drawn, range(count), strict=False)]


def in_fp32() -> KernelTable:
    """Use kernels that widen weights and multiply in fp32."""
    names = dict.fromkeys(LAYOUTS, "widened-fp32") | {"fp32": "linear"}
    timings = [
        Timing(storage, 1, 1, bucket, name, 1.0)
        for storage, name in names.items()
        for bucket in range(len(BUCKET_NAMES))
    ]
    return KernelTable(1, (), tuple(timings))
