"""MTP heads for the tiny models of `families`, written into their checkpoints like published ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from tests.core.families import SPREAD

BESIDE, BEHIND = "beside", "behind"
LAYOUTS = {
    "qwen3_next": BESIDE, "qwen3_5_text": BESIDE, "qwen3_5_moe_text": BESIDE, "glm4_moe": BEHIND,
    "glm4_moe_lite": BEHIND, "deepseek_v3": BEHIND,
}  # fmt: skip
NAMES = {
    BESIDE: ("mtp.layers.0.", "mtp.fc.", "mtp.pre_fc_norm_embedding.", "mtp.pre_fc_norm_hidden.", "mtp.norm."),
    BEHIND: ("", "eh_proj.", "enorm.", "hnorm.", "shared_head.norm."),
}
"""Prefixes of the layer's parts and of those around it: the projection, the two norms before it, the one after."""
ADDS = re.compile(r"(o_proj|out_proj|down_proj)(\.weight)?$")
"""The projections that write to the residual stream."""


def add_mtp(folder: Path, family: str) -> Path:
    """Add a head of random weights to the model in this folder: another layer like its last, and what surrounds it."""
    # Read, not mapped: on Windows a file that is mapped cannot be written.
    weights = load((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    layers, hidden = text["num_hidden_layers"], text["hidden_size"]
    stem, projection, *norms = _names(family, layers)
    generator = torch.Generator().manual_seed(11)
    model = next(name for name in weights if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    last = f"{model}layers.{layers - 1}."
    for name in sorted(name for name in weights if name.startswith(last)):  # read in another order each time
        value = weights[name]
        new = torch.randn(value.shape, generator=generator) * SPREAD if value.dim() > 1 else value.float()
        weights[stem + name.removeprefix(last)] = new.to(value.dtype, copy=True)
    dtype = weights[f"{model}norm.weight"].dtype
    weights[f"{projection}weight"] = (torch.randn(hidden, 2 * hidden, generator=generator) * SPREAD).to(dtype)
    for norm in norms:
        weights[f"{norm}weight"] = (torch.rand(hidden, generator=generator) + 0.5).to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if LAYOUTS[family] == BEHIND:
        config["num_nextn_predict_layers"] = 1
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_predictable(folder: Path, family: str) -> Path:
    """Make each token determine the next one, for model and head alike, so that the acceptance is 1 by design.

    No layer adds anything, so that the output head reads the last token's embedding. Each row of the output head is the
    embedding of the token before.
    """
    weights = load((folder / "model.safetensors").read_bytes())
    table = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = table.roll(1, 0).contiguous()
    for name in [name for name in weights if ADDS.search(name)]:
        weights[name] = torch.zeros_like(weights[name])
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    _, projection, *_ = _names(family, layers)
    weights[f"{projection}weight"] = _takes_the_token(table)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _takes_the_token(table: Tensor) -> Tensor:
    hidden = table.shape[1]
    return torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1).to(table.dtype)


def _names(family: str, layers: int) -> list[str]:
    layout = LAYOUTS[family]
    before = f"model.layers.{layers}." if layout == BEHIND else ""
    return [before + name for name in NAMES[layout]]
