"""Caches surveys on disk: the same configuration and libraries give the same specification.

A bundle ships the survey of its own guide model, because a survey loads modules that would delay the first start by two
seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from core.files import keep
from core.model.model_source import Source
from core.model.tables import input_table, other_tables
from core.model.trace import survey
from core.paths import cache_folder, made_before
from core.spec import KvLayer, LinearSpec, ModelSpec, Storage

FOLDER = "specs"
SURVEY_VERSION = 10
"""Incremented when a survey's result changes."""
KEPT_SPECS = 64


def specification_of(source: Source) -> ModelSpec:
    """Return the specification of a source."""
    return specification(
        source.module,
        source.name,
        cache_folder(),
        source.stored,
        source.stored_as,
        tables_in_file=source.tables_in_file,
    )


def specification(
    module: Any, name: str, folder: Path, stored: Mapping[str, Storage | None] | None = None, stored_as: str = "",
    *, tables_in_file: Collection[str] = (),
) -> ModelSpec:  # fmt: skip
    """Return the specification of a model on the meta device, surveying it if it is not cached. `stored`: the storage
    of linears that the model's files have quantised, None if they are converted; `stored_as`: the name of that
    quantisation; `tables_in_file`: token tables that occupy no memory."""
    key = Path(FOLDER, f"{_key(module)}.json")
    spec = _read(folder / key) or _read(made_before() / key)
    if spec is None:
        spec = survey(module, name)
        _write(folder / key, spec)
    held = stored or {}
    linears = tuple(
        replace(linear, stored=held[linear.name], converted=held[linear.name] is None)
        if linear.name in held
        else linear
        for linear in spec.linears
    )
    table = 0 if f"{input_table(module)}.weight" in tables_in_file else spec.embedding_bytes
    others = [f"{name}.weight" in tables_in_file for name in other_tables(module)]
    looked_up = 0 if all(others) else spec.lookup_bytes
    return replace(spec, name=name, linears=linears, stored_as=stored_as, embedding_bytes=table, lookup_bytes=looked_up)


def _key(module: Any) -> str:
    # The suffix after "+" names torch's GPU build, which does not affect the result.
    libraries = [torch.__version__.partition("+")[0], transformers.__version__]
    facts = [SURVEY_VERSION, *libraries, type(module).__name__, str(module.dtype)]
    config = module.config.to_json_string(use_diff=False)
    return hashlib.sha256(json.dumps([*facts, config]).encode()).hexdigest()[:24]


def _read(file: Path) -> ModelSpec | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["linears"] = tuple(LinearSpec(**row) for row in found["linears"])
        found["kv_layers"] = tuple(KvLayer(**row) for row in found["kv_layers"])
        return ModelSpec(**found)
    except (OSError, ValueError, TypeError, KeyError):  # missing or damaged
        return None


def _write(file: Path, spec: ModelSpec) -> None:
    keep(file, asdict(spec))
    with suppress(OSError):  # another process may do the same
        for old in sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)[:-KEPT_SPECS]:
            old.unlink()
