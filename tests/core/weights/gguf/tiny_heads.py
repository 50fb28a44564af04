"""MTP heads of tiny models as written by llama.cpp's converter: one more layer after the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
from torch import Tensor

from tests.core.weights.gguf.tiny_gguf import MODELS, Tensors, laid_out, named

AROUND = {"model.join.": "", "model.norm.": "shared_head.norm."}
"""The converter's names within a layer for the modules around it in our tree."""


def head_tensors(name: str, head: Mapping[str, Tensor], config: Any) -> Tensors:
    """Return the file's tensors of a head given by our tree's names, for the model `name` with `config`."""
    layer = f"model.layers.{config.num_hidden_layers}."
    renamed = {"model.layers.0.": layer} | {ours: f"{layer}{theirs}" for ours, theirs in AROUND.items()}
    found: Tensors = {}
    for key, value in head.items():
        stem = next((ours for ours in renamed if key.startswith(ours)), None)
        if stem is not None:
            own = renamed[stem] + key.removeprefix(stem)
            for theirs, tensor in laid_out(name, own, value.detach().clone(), config):
                found[theirs or _named(name, own, config.num_hidden_layers + 1)] = tensor
    return found


def _named(name: str, key: str, layers: int) -> str:
    """Return the GGUF name; the package's table only has the modules around the layer for GLM."""
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    around = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4_MOE, layers).get_name(key, try_suffixes=(".weight",))
    if around is not None and ".nextn." in around:
        return str(around)
    return named(gguf.get_tensor_name_map(kinds[MODELS[name][0]], layers), key)
