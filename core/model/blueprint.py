"""Builds a model's module tree with transformers on the meta device: shapes and names, no weights, no memory.

Works for every architecture with which transformers can generate text; there is no code per family.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from core.errors import ModelUnreadable, UnsupportedModel
from core.layers import adapted_angles, adapted_attention, adapted_mixtures
from core.layers.attention import NAME as ATTENTION
from core.layers.attention import register as register_attention
from core.layers.kv_cache import cache_argument, is_usual
from core.layers.moe import register as register_experts
from core.model.language_half import auto_class, language_half, spoken_part, text_config, without_towers
from core.model.thread_dtype import building
from core.sentence import sentence
from core.startup.torch_stubs import bare_torch
from core.weights.weight_files import check_folder

log = logging.getLogger(__name__)

ROPE_SETTINGS = ("rope_scaling", "rope_parameters")
ROPE_KEYS = frozenset(("type", "rope_type"))
ROPE_NAMES = {"su": "longrope", "mrope": "default", "dynamic": "default"}
"""Older names; for text, three-part positions (mrope) equal the default ones, and dynamic ones do up to
`context_limit`, unless a fixed factor stretches them (`FIXED`, of Hunyuan)."""
FIXED = "alpha"
ALLOCATIONS = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))


def read_config(folder: Path) -> Any:
    """Return transformers' configuration of a model folder. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
    return config_from(raw_config(folder))


def raw_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's config.json. Raises ModelNotFound, ModelUnreadable."""
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
    """Build transformers' configuration from the content of config.json. Raises UnsupportedModel."""
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
    # Each architecture validates in its own way and may raise any exception.
    except Exception as error:
        raise _no_model(error) from error


def build(config: Any, dtype: torch.dtype) -> Any:
    """Build the causal language model's module tree on the meta device. Raises UnsupportedModel, ModelUnreadable."""
    module = module_tree(config, dtype)
    _check_cache(module)
    return module


def module_tree(config: Any, dtype: torch.dtype) -> Any:
    """Build a module tree as `build`, also of a model that has no cache of its own."""
    from transformers.initialization import no_init_weights

    config = spoken_part(config)
    family = auto_class(config)
    if family is None:
        raise _no_causal_lm(config)
    options = {"dtype": dtype, "experts_implementation": register_experts(), "trust_remote_code": False}
    ways = [(attention, where) for attention in (register_attention(), "sdpa", "eager") for where in NO_MEMORY]
    obstacle = ""
    for attention, where in ways:
        try:
            with building(), bare_torch(), without_towers(), where(), no_init_weights():
                module = family.from_config(config, attn_implementation=attention, **options)
            module = language_half(module)
            if attention == ATTENTION and (obstacle := own_attention(module)):
                continue
            if where is all_on_meta or all(weight.is_meta for weight in module.parameters()):
                break
        # Older architectures have their own attention classes, some only the eager one, and each fails in its own way
        # at invalid settings.
        except Exception as error:
            if (attention, where) == ways[-1]:
                raise _no_model(error) from error
    if obstacle:
        log.info("%s has its own attention (%s): %s", config.model_type, attention, obstacle)
    for room in (adapted_mixtures, adapted_attention, adapted_angles):
        room.adapt(module)
    module.tie_weights()
    return module.eval().requires_grad_(False)


def whole_tree(config: Any, dtype: torch.dtype) -> Any:
    """Build a model's whole tree, with vision and audio parts, on the meta device. Raises UnsupportedModel."""
    from transformers.initialization import no_init_weights

    # transformers writes the requested attention into the config, where the language half's module reads it.
    config = deepcopy(config)
    family = auto_class(config)
    if family is None:
        raise _no_causal_lm(config)
    try:
        with building(), bare_torch(), without_towers(), OnlyComputed(), no_init_weights():
            module = family.from_config(config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
    except (ValueError, RuntimeError):
        with building(), bare_torch(), without_towers(), all_on_meta(), no_init_weights():
            module = family.from_config(config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)
    return module.eval().requires_grad_(False)


def own_attention(module: Any) -> str:
    """Return why our attention function would not compute what the model's own does; empty if it does."""
    if not _asks_for_attention(module):
        return "its layers do not call the function that the configuration names"
    if not _says_who_is_causal(module):
        return "what is causal shows only in the masks of its eager attention"
    return "" if is_usual(module.config) else "it keeps further state, and builds its own masks"


def _asks_for_attention(module: Any) -> bool:
    """Return whether the layers use the attention function, and its mask, that the configuration names.

    Other layers compute attention themselves, and without a mask would attend to later tokens.
    """
    layers = decoder_layers(module)
    return not layers or hasattr(sys.modules[type(layers[0]).__module__], "ALL_ATTENTION_FUNCTIONS")


def _says_who_is_causal(module: Any) -> bool:
    """Return whether `is_causal` of the layers' attention holds without a mask.

    Eager attention is always given a mask, so classes that know no other (BigBird-Pegasus) may leave it at False.
    """
    return bool(module._supports_sdpa) or all(getattr(part, "is_causal", True) for part in module.modules())


class OnlyComputed(TorchFunctionMode):
    """Context: allocates computed tensors (RoPE frequencies), which are small, but no memory for weights.

    On the meta device, torch would import sympy to compute them. A few architectures compute weights, or need computed
    tensors and weights on one device; these are built by `all_on_meta`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in ALLOCATIONS and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


def all_on_meta() -> torch.device:
    """Return a context that allocates nothing."""
    return torch.device("meta")


NO_MEMORY = (OnlyComputed, all_on_meta)


def decoder_layers(module: Any) -> list[nn.Module]:
    """Return the repeated blocks in order: the module list as long as the configuration's number of layers."""
    count = text_config(module.config).num_hidden_layers
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return list(child)
    return []


def context_limit(config: Any) -> int:
    """Return the longest sequence the model was made for, in tokens."""
    text = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"):
        if isinstance(value := getattr(text, name, None), int) and value > 0:
            return value
    return 2048


def _check_supported(raw: dict[str, Any]) -> None:
    if not isinstance(raw.get("model_type"), str):
        raise UnsupportedModel("config.json names no architecture.", "", "Choose the folder of a language model.")


def _renamed_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with current names of RoPE scaling types, also within the parts of a composite model."""
    found = dict(raw)
    for key, value in raw.items():
        if isinstance(value, dict):
            names = () if FIXED in value else ROPE_KEYS & _texts(value)
            kinds = {name: ROPE_NAMES.get(value[name], value[name]) for name in names}
            found[key] = _renamed_rope(value) | (kinds if key in ROPE_SETTINGS else {})
    return found


def _texts(entry: dict[str, Any]) -> set[str]:
    return {name for name, value in entry.items() if isinstance(value, str)}


def cannot_run(module: Any, error: Exception) -> UnsupportedModel:
    """Return the error for a model whose forward pass fails."""
    return UnsupportedModel(
        sentence("A model of the kind {} cannot be run here.", f"{module.config.model_type!r}"),
        sentence("Its own program says: {}.", reason(error)),
        "Choose another model.",
    )


def cannot_be_planned(module: Any) -> UnsupportedModel:
    """Return the error for a model whose layers choose by their values what they compute, in a way of their own."""
    return UnsupportedModel(
        sentence("A model of the kind {} cannot be run here.", f"{module.config.model_type!r}"),
        "It decides only while it runs what it computes, which cannot be planned.",
        "Choose a model of another architecture.",
    )


def reason(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop; its type if there is no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def _special_floats(entry: dict[str, Any]) -> Any:
    """Decode infinity, which JSON lacks and transformers writes as {"__float__": "Infinity"}."""
    return float(str(entry["__float__"])) if entry.keys() == {"__float__"} else entry


LENT = "shared_kv_states"
"""The argument of a model's forward for another model's keys and values."""
PAST_OF_ITS_OWN = ("_setup_cache", "prompt_length")
"""Attributes of models that keep state between passes, or need their whole text in each pass (CPM-Ant)."""


def _check_cache(module: Any) -> None:
    if LENT in inspect.signature(module.forward).parameters and not cache_argument(module):
        raise UnsupportedModel(
            sentence("A model of the kind {} cannot chat.", f"{module.config.model_type!r}"),
            "It only guesses ahead for the model that it was made for.",
            "Load that model, with this one as its draft model.",
        )
    # A few old architectures use a cache format of their own, or write to their weights while they run.
    supported = getattr(module, "_supports_default_dynamic_cache", None)  # robot control models do not generate text
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
