"""The planner's answer for a model whose weights are not here, from its config.json and the headers of its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

import torch

from core.hub.fit import Fit, Tensors, Wishes, fit
from core.model.blueprint import build, config_from
from core.model.gguf_source import describe_gguf
from core.model.spec_cache import specification
from core.model.stored_source import kept_linears
from core.model.ties import tie_weights
from core.model.trace import STORED
from core.paths import cache_folder
from core.planning.planner import place
from core.spec import Budget, Hardware, ModelSpec
from core.startup.environment import prepare_environment
from core.weights.checkpoint import DTYPES
from core.weights.gguf.config import ARCHITECTURE
from core.weights.gguf.header import TensorPlace
from core.weights.gguf.kind import file_kind
from core.weights.safetensors_header import TensorInfo
from core.weights.stored.checkpoint import sketches
from core.weights.stored.find import Found, find_stored
from core.weights.stored_formats import check_readable, stored_format


def describe(config: Mapping[str, Any], tensors: Tensors, name: str = "") -> ModelSpec:
    """Return the specification of a model from config.json's content, or from a GGUF file's settings.

    Raises UnsupportedModel, ModelUnreadable.
    """
    if ARCHITECTURE in config:
        places = _places(tensors)
        module, stored, in_file = describe_gguf(dict(config), places, name)
        kind = file_kind(config, places)
        return specification(module, name, cache_folder(), stored, kind, tables_in_file=in_file)
    return _described(config, _infos(tensors), name)


def _described(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], name: str) -> ModelSpec:
    stored = stored_format(config, tensors)
    check_readable(stored)
    found = Found(tensors) if stored.is_plain else find_stored(tensors, stored)
    module = build(config_from(dict(config)), stored_dtype(config, found.plain))
    tie_weights(module, found.names)
    kept = kept_linears(module, found, sketches(found, stored.settings)).stored if found.weights else {}
    return specification(module, name, cache_folder(), kept, "" if stored.is_plain else found.title or stored.method)


def stored_dtype(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """Return the type of most weights: from the headers if they are known, else from config.json, else bf16."""
    sizes: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        if info.dtype in DTYPES:
            sizes[DTYPES[info.dtype]] += info.nbytes
    found = next((dtype for dtype, _ in sizes.most_common() if dtype in STORED), None)
    if found is not None:
        return found
    said = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    return next((dtype for dtype in STORED if str(dtype) == f"torch.{said}"), torch.bfloat16)


def _places(tensors: Tensors) -> dict[str, TensorPlace]:
    return {name: place for name, place in tensors.items() if isinstance(place, TensorPlace)}


def _infos(tensors: Tensors) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if isinstance(info, TensorInfo)}


class FitChecker:
    """A FitCheck for this machine. Thread-safe; a model's specification is computed once."""

    def __init__(self, hardware: Callable[[], Hardware], limits: Budget) -> None:
        """`hardware`: returns this machine with its free memory; `limits`: the user's limits of memory and threads."""
        prepare_environment()
        self._hardware = hardware
        self._limits = limits
        self._known: dict[str, ModelSpec] = {}
        self._lock = Lock()

    def __call__(self, config: Mapping[str, Any], tensors: Tensors, wishes: Wishes) -> Fit:
        """Return how a model would run here. Raises HeteGenError."""
        spec = self._spec(config, tensors)
        context = min(wishes.context, spec.context_limit) if wishes.context else None
        budget = replace(self._limits, context=context, format=wishes.format)
        return fit(place(spec, self._hardware(), budget), spec, sum(info.nbytes for info in tensors.values()))

    def _spec(self, config: Mapping[str, Any], tensors: Tensors) -> ModelSpec:
        with self._lock:
            infos = _infos(tensors)
            kinds = [sorted({info.dtype for info in infos.values()}), sorted(map(str, _places(tensors).values()))]
            key = json.dumps([dict(config), str(stored_dtype(config, infos)), *kinds], sort_keys=True, default=str)
            if key not in self._known:
                self._known[key] = describe(config, tensors)
            return self._known[key]
