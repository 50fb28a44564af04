"""Derives transformers' configuration of a model from a GGUF file's settings and tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UnsupportedModel
from core.sentence import sentence
from core.weights.gguf.families import FAMILIES, Family
from core.weights.gguf.header import TensorPlace, unreadable
from core.weights.gguf.settings import Config, Reading

ARCHITECTURE = "general.architecture"
REQUIRED = ("hidden_size", "num_attention_heads")
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
VECTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that hold settings, not weights."""


def family_of(settings: Mapping[str, Any]) -> Family:
    """Return the architecture family of a file. Raises UnsupportedModel."""
    name = settings.get(ARCHITECTURE)
    if name not in FAMILIES:
        raise UnsupportedModel(
            sentence("GGUF files of the architecture {} are not read here.", repr(str(name)[:40])),
            "Its tensors and settings are not known to this version of HeteGen.",
            "Choose the model in its original safetensors version.",
        )
    return FAMILIES[name]


def config_of(
    settings: Mapping[str, Any], tensors: Mapping[str, TensorPlace], vectors: Mapping[str, list[float]], source: str
) -> Config:
    """Return what config.json would hold. `vectors`: the values of those VECTORS that the file has.

    Raises UnsupportedModel, ModelUnreadable.
    """
    family = family_of(settings)
    try:
        return _config(family, Reading(settings, tensors, vectors), tensors)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise unreadable(source, sentence("Its settings do not describe a model ({}).", str(error)[:60])) from error


def _config(family: Family, file: Reading, tensors: Mapping[str, TensorPlace]) -> Config:
    config: Config = {"model_type": family.kind} | dict(family.fixed)
    for key, name in family.config.items():
        if (value := file.get(key)) is not None:
            config[name] = _same(value)
    if missing := [name for name in REQUIRED if not isinstance(config.get(name), int)]:
        raise KeyError(missing[0])
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["num_hidden_layers"] = file.get("block_count") - file.get("nextn_predict_layers", 0)
    config["vocab_size"] = tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for key, name in IDS.items():
        config[name] = file.settings.get(f"tokenizer.ggml.{key}")
    for write in family.more:
        write(file, config)
    return config


def _same(value: Any) -> Any:
    """Return a setting; a per-layer list must have the same value for each layer. Raises ValueError."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError("layers of different sizes")
    return value[0]
