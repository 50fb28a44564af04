"""The language model within a vision or audio model: the rest of the tree is removed before weights are loaded.

transformers' class for the whole model keeps its forward and its weight names; without images or audio it only runs the
language model. So there is no code per family here either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LANGUAGE_NAMES = ("language_model", "text_model", "text_decoder")
"""Names of the text part in transformers' composite models."""


def text_config(config: Any) -> Any:
    """Return the part of a configuration that describes the language model (all of it for text-only models)."""
    return config.get_text_config(decoder=True)


def spoken_part(config: Any) -> Any:
    """Return the configuration of the part that chats, if a model has another one for speech output."""
    return getattr(config, "thinker_config", None) or config


def auto_class(config: Any) -> Any:
    """Return transformers' `AutoModelFor...` that builds a model which generates text; None if there is none."""
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        return None
    families = (auto.AutoModelForImageTextToText, auto.AutoModelForMultimodalLM)
    whole = next((family for family in families if type(config) in family._model_mapping), None)
    if type(config) not in auto.AutoModelForCausalLM._model_mapping:
        return whole
    # If there are both, the checkpoint states which class was saved; published ones are saved whole.
    only_text = auto.AutoModelForCausalLM._model_mapping[type(config)]
    is_whole = whole is not None and getattr(only_text, "__name__", "") not in (config.architectures or ())
    return whole if is_whole else auto.AutoModelForCausalLM


def language_half(module: Any) -> Any:
    """Return the part of a model that runs a chat: all of a text-only model, else what remains without other
    modalities.

    If the language model has its own output head, it is returned alone, with the prefix of its weights' names in the
    checkpoint as `weights_prefix`.
    """
    path = _language_path(module)
    if not path:
        return module
    language: Any = module.get_submodule(".".join(path))
    if language.get_output_embeddings() is not None:
        language.weights_prefix = ".".join((*path, ""))
        return language
    _leave(module, path)
    return module


def _leave(module: Any, path: list[str]) -> None:
    """Replace everything outside the language model that text does not pass through with `Nothing`."""
    kept = _needed(module, path)
    for holder in (module.get_submodule(".".join(path[:depth])) for depth in range(len(path))):
        for name, child in holder.named_children():
            if kept.isdisjoint(map(id, child.modules())):
                holder._modules[name] = Nothing(getattr(child, "config", None))
        for name in holder._parameters:
            holder._parameters[name] = None


def _language_path(module: Any) -> list[str]:
    """Return the path of a composite model's language model in the tree; empty for a plain language model."""
    names = (name for name, _ in module.named_modules() if name.rpartition(".")[2] in LANGUAGE_NAMES)
    return next(names, "").split(".") if type(module.config) is not type(text_config(module.config)) else []


def _needed(module: Any, path: list[str]) -> set[int]:
    """Return the ids of the modules that text passes through: table, language model, head."""
    parts = (module.get_submodule(".".join(path)), module.get_input_embeddings(), module.get_output_embeddings())
    return {id(each) for part in parts if part is not None for each in part.modules()}


@contextmanager
def without_towers() -> Iterator[None]:
    """Context: towers that need an image library are built as `Nothing`. Patches transformers; not thread-safe."""
    from transformers import AutoModel

    original = AutoModel.__dict__["from_config"]

    def from_config(cls: Any, /, config: Any, **options: Any) -> Any:
        try:
            return original.__get__(None, cls)(config, **options)
        except ImportError:
            return Nothing(config)

    AutoModel.from_config = classmethod(from_config)
    try:
        yield
    finally:
        AutoModel.from_config = original


class Nothing(nn.Module):
    """A placeholder for a tower, for forwards that look up its device or dtype."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
