"""The language model of a model that also sees or hears: the rest of its tree is left away before it gets weights.

transformers' own class for the whole model keeps its forward and its names for weights; without a picture or a sound
it touches nothing but the language model. So there is no code per family here either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LANGUAGE_NAMES = ("language_model", "text_model", "text_decoder")
"""What transformers' composite models call the part that reads and writes text."""


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model (all of it for text-only models)."""
    return config.get_text_config(decoder=True)


def spoken_part(config: Any) -> Any:
    """The configuration of the part that chats, where a model has another one for speaking aloud."""
    return getattr(config, "thinker_config", None) or config


def auto_class(config: Any) -> Any:
    """The `AutoModelFor...` of transformers that builds a model which writes text; None where none does."""
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        return None
    families = (auto.AutoModelForImageTextToText, auto.AutoModelForMultimodalLM)
    whole = next((family for family in families if type(config) in family._model_mapping), None)
    if type(config) not in auto.AutoModelForCausalLM._model_mapping:
        return whole
    # Where there are both, the checkpoint says which one was saved; published ones are whole.
    only_text = auto.AutoModelForCausalLM._model_mapping[type(config)]
    is_whole = whole is not None and getattr(only_text, "__name__", "") not in (config.architectures or ())
    return whole if is_whole else auto.AutoModelForCausalLM


def language_half(module: Any) -> Any:
    """The part of a model that is run to chat: all of a text-only one, else what is left without eyes and ears.

    Where the language model in it has a head of its own it is taken by itself, and `weights_prefix` says what its
    weights' names begin with in the checkpoint.
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
    """Take everything out of the tree that lies beside the language model and that text does not pass through."""
    kept = _needed(module, path)
    for holder in (module.get_submodule(".".join(path[:depth])) for depth in range(len(path))):
        for name, child in holder.named_children():
            if kept.isdisjoint(map(id, child.modules())):
                holder._modules[name] = Nothing(getattr(child, "config", None))
        for name in holder._parameters:
            holder._parameters[name] = None


def _language_path(module: Any) -> list[str]:
    """Where in the tree the language model of a composite model is; empty in a model that is nothing else."""
    names = (name for name, _ in module.named_modules() if name.rpartition(".")[2] in LANGUAGE_NAMES)
    return next(names, "").split(".") if type(module.config) is not type(text_config(module.config)) else []


def _needed(module: Any, path: list[str]) -> set[int]:
    """The parts that text passes through: table, language model, head."""
    parts = (module.get_submodule(".".join(path)), module.get_input_embeddings(), module.get_output_embeddings())
    return {id(each) for part in parts if part is not None for each in part.modules()}


@contextmanager
def without_towers() -> Iterator[None]:
    """Context: a tower that needs a library for pictures is built as nothing. For one thread at a time."""
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
    """Stands where a tower would be, for forwards that ask where it is."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
