"""The module tree of a model, built by transformers on the meta device: shapes and names, no weights, no memory.

Every architecture that transformers can generate text with works; there is no code per family here.
"""

from __future__ import annotations

import inspect
import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from core.errors import ModelUnreadable, UnsupportedModel
from core.layers.attention import NAME as ATTENTION
from core.layers.attention import register as register_attention
from core.layers.kv_cache import CACHE_NAMES, is_usual
from core.layers.moe import register as register_experts
from core.model.language_half import auto_class, language_half, spoken_part, text_config, without_towers
from core.sentence import sentence
from core.startup.torch_stubs import bare_torch
from core.weights.weight_files import check_folder

ROPE_SETTINGS = ("rope_scaling", "rope_parameters")
ROPE_KEYS = frozenset(("type", "rope_type"))
ROPE_NAMES = {"su": "longrope", "mrope": "default"}
"""Older names; of text, positions in three parts (mrope) are the plain ones."""
ALLOCATIONS = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))


def read_config(folder: Path) -> Any:
    """transformers' configuration of a model folder. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
    return config_from(raw_config(folder))


def raw_config(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json. Raises ModelNotFound, ModelUnreadable."""
    check_folder(folder)
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"), object_hook=_special_floats)
    except OSError as error:
        raise ModelUnreadable(
            "config.json cannot be read.", f"{error.strerror or error}.", "Check the file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelUnreadable("config.json cannot be read.", "It is damaged.", "Download the model again.") from error
    if not isinstance(raw, dict):
        raise ModelUnreadable("config.json cannot be read.", "It holds no settings.", "Download the model again.")
    return raw


def config_from(raw: dict[str, Any]) -> Any:
    """transformers' configuration from the content of config.json. Raises UnsupportedModel."""
    _check_supported(raw)
    from transformers import CONFIG_MAPPING

    model_type = raw["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(
            sentence("The architecture {} is not known.", f"{model_type!r}"),
            "It is newer than this version of HeteGen, or needs program code of its own, which is never run.",
            "Update HeteGen, or choose another model.",
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(_renamed_rope(raw))
    # Each architecture validates in its own way, with any of Python's errors.
    except Exception as error:
        raise _no_model(error) from error


def build(config: Any, dtype: torch.dtype) -> Any:
    """The causal language model's module tree on the meta device. Raises UnsupportedModel, ModelUnreadable."""
    from transformers.initialization import no_init_weights

    config = spoken_part(config)
    family = auto_class(config)
    if family is None:
        raise _no_causal_lm(config)
    options = {"dtype": dtype, "experts_implementation": register_experts(), "trust_remote_code": False}
    ways = [(attention, where) for attention in (register_attention(), "sdpa", "eager") for where in NO_MEMORY]
    for attention, where in ways:
        try:
            with bare_torch(), without_towers(), where(), no_init_weights():
                module = family.from_config(config, attn_implementation=attention, **options)
            module = language_half(module)
            if attention == ATTENTION and not (_asks_for_attention(module) and is_usual(module.config)):
                continue  # who remembers something else besides also does something of its own with masks
            if where is all_on_meta or all(weight.is_meta for weight in module.parameters()):
                break
        # Older architectures have their own classes for attention, and some only the plain way; and each has its own
        # way to fail at numbers that make no sense.
        except Exception as error:
            if (attention, where) == ways[-1]:
                raise _no_model(error) from error
    _check_cache(module)
    module.tie_weights()
    return module.eval().requires_grad_(False)


def whole_tree(config: Any, dtype: torch.dtype) -> Any:
    """The tree of a model with everything that sees and hears, on the meta device. Raises UnsupportedModel."""
    from transformers.initialization import no_init_weights

    # transformers writes into a config which attention was asked for, and the language half's own reads it there.
    config = deepcopy(config)
    family = auto_class(config)
    if family is None:
        raise _no_causal_lm(config)
    try:
        with bare_torch(), without_towers(), OnlyComputed(), no_init_weights():
            module = family.from_config(config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
    except (ValueError, RuntimeError):
        with bare_torch(), without_towers(), all_on_meta(), no_init_weights():
            module = family.from_config(config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)
    return module.eval().requires_grad_(False)


def _asks_for_attention(module: Any) -> bool:
    """Whether the layers leave attention, and the mask for it, to the function that the configuration names.

    The others compute their own, and without a mask would see what is still to come.
    """
    layers = decoder_layers(module)
    return not layers or hasattr(sys.modules[type(layers[0]).__module__], "ALL_ATTENTION_FUNCTIONS")


class OnlyComputed(TorchFunctionMode):
    """Has memory given to what is computed (RoPE's frequencies), which is small, and none to what waits for weights.

    On the meta device torch would first import an algebra system. Where a few architectures compute a weight, or need
    numbers and weights in one place, all goes there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in ALLOCATIONS and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


def all_on_meta() -> torch.device:
    """Gives memory to nothing."""
    return torch.device("meta")


NO_MEMORY = (OnlyComputed, all_on_meta)


def decoder_layers(module: Any) -> list[nn.Module]:
    """The repeated blocks in order: the module list as long as the configuration says there are layers."""
    count = text_config(module.config).num_hidden_layers
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return list(child)
    return []


def context_limit(config: Any) -> int:
    """The longest sequence the model was made for, in tokens."""
    text = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"):
        if isinstance(value := getattr(text, name, None), int) and value > 0:
            return value
    return 2048


def cache_argument(module: Any) -> str:
    """The name of the argument by which a model's forward takes its cache; empty where it takes none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), "")


def _check_supported(raw: dict[str, Any]) -> None:
    if not isinstance(raw.get("model_type"), str):
        raise UnsupportedModel("config.json names no architecture.", "", "Choose the folder of a language model.")


def _renamed_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The same settings with today's names for ways to stretch positions, also in the parts of a composite model."""
    found = dict(raw)
    for key, value in raw.items():
        if isinstance(value, dict):
            kinds = {name: ROPE_NAMES.get(value[name], value[name]) for name in ROPE_KEYS & _texts(value)}
            found[key] = _renamed_rope(value) | (kinds if key in ROPE_SETTINGS else {})
    return found


def _texts(entry: dict[str, Any]) -> set[str]:
    return {name for name, value in entry.items() if isinstance(value, str)}


def cannot_run(module: Any, error: Exception) -> UnsupportedModel:
    """What to say where a model's forward pass fails."""
    return UnsupportedModel(
        sentence("A model of the kind {} cannot be run here.", f"{module.config.model_type!r}"),
        sentence("Its own program says: {}.", reason(error)),
        "Choose another model.",
    )


def reason(error: BaseException) -> str:
    """The first line of an error's text, without its full stop; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def _special_floats(entry: dict[str, Any]) -> Any:
    """transformers writes infinity, which JSON does not know, as {"__float__": "Infinity"}."""
    return float(str(entry["__float__"])) if entry.keys() == {"__float__"} else entry


PAST_OF_ITS_OWN = ("_setup_cache", "prompt_length")
"""Attributes of models that keep a state between passes, or want their whole text in each (CPM-Ant)."""


def _check_cache(module: Any) -> None:
    # A few old architectures keep their past in a form of their own, or write into their weights while they run.
    supported = getattr(module, "_supports_default_dynamic_cache", None)  # what steers robots generates no text
    keeps_own = (
        any(hasattr(module.base_model, name) for name in PAST_OF_ITS_OWN) or supported is None or not supported()
    )
    if not cache_argument(module) or keeps_own:
        raise UnsupportedModel(
            sentence("A model of the kind {} cannot be run here.", f"{module.config.model_type!r}"),
            "It keeps what it has read in a form of its own.",
            "Choose a model of another architecture.",
        )


def _no_model(error: Exception) -> ModelUnreadable:
    return ModelUnreadable("config.json does not describe a model.", f"{reason(error)}.", "Download the model again.")


def _no_causal_lm(config: Any) -> UnsupportedModel:
    return UnsupportedModel(
        sentence("A model of the kind {} cannot chat.", f"{config.model_type!r}"),
        "It is not a causal language model.",
        "Choose a model made for text generation.",
    )
