"""Opens a model: from a folder, the built-in one, a Hub id in the local cache, or a shape with random weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.kernels.quantized_weight import QuantizedWeight
from core.model.blueprint import build, config_from, raw_config
from core.model.gguf_source import open_gguf
from core.model.language_half import text_config
from core.model.stored_source import kept_linears
from core.model.ties import tie_weights
from core.paths import SHAPE_PREFIX, builtin_model
from core.spec import Storage
from core.weights.checkpoint import Checkpoint
from core.weights.gguf.parts import gguf_in, is_gguf_file
from core.weights.gguf.tokenizer import end_ids, make_tokenizer
from core.weights.gguf.weights import GgufWeights
from core.weights.known_shapes import shape
from core.weights.packed_linears import PackedLinears
from core.weights.random_weights import RandomWeights
from core.weights.stored.checkpoint import StoredCheckpoint
from core.weights.stored_formats import check_readable, read_sidecars, stored_format

GUIDE_NAME = "HeteGen Guide"


@dataclass(frozen=True)
class Source:
    """A model that can be built and filled: its meta tree, and its tensors by their names in the files.

    `folder` is None for a shape. `generation`: the content of generation_config.json, {} if there is none. `packed`:
    the weights of quantised linears, exact, by `matrix_names`; made on access, not cached. `stored`: their storage by
    linear, None if they are converted. `stored_as`: the name of the files' quantisation, for people. `files`: the files
    that identify conversions in the disk cache, () if nothing is cached. `part`: which part of these files this is, ""
    = the model. `tables_in_file`: tables whose rows are read from the file on lookup. `make_tokenizer` builds
    transformers' tokenizer if `folder` has no tokenizer files.
    """

    name: str
    folder: Path | None
    module: Any
    weights: Mapping[str, Tensor]
    nbytes: int
    generation: dict[str, Any]
    packed: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    files: Sequence[Path] = ()
    stored: Mapping[str, Storage | None] = field(default_factory=dict)
    stored_as: str = ""
    part: str = ""
    tables_in_file: frozenset[str] = frozenset()
    make_tokenizer: Callable[[], Any] | None = None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply, by the model's own configuration."""
        own = getattr(text_config(self.module.config), "eos_token_id", None)
        return _ids(self.generation.get("eos_token_id")) | _ids(own)

    @property
    def remembered_turns(self) -> int:
        """How many turns of a conversation the model can follow, 0 = as many as fit; the built-in guide states few."""
        said = self.generation.get("remembered_turns")
        return said if isinstance(said, int) and said > 0 else 0

    def warm(self) -> Iterator[float]:
        """Read the files into the page cache; yield the fraction done."""
        if isinstance(self.weights, Checkpoint | StoredCheckpoint):
            yield from self.weights.warm()
        elif isinstance(self.weights, GgufWeights):
            yield from self.weights.files.warm()

    def let_go(self) -> None:
        """Drop mapped pages read so far from this process's resident set; they are read again if needed."""
        if isinstance(self.weights, Checkpoint | StoredCheckpoint):
            self.weights.let_go()


Build = Callable[[Any, torch.dtype], Any]
"""(configuration, dtype) -> a module tree on the meta device."""


def open_source(name: str | Path | None, build: Build = build) -> Source:
    """Read configuration and headers, and build the meta tree, without reading weights. Raises HeteGenError."""
    if isinstance(name, str) and name.startswith(SHAPE_PREFIX):
        return _open_shape(name.removeprefix(SHAPE_PREFIX))
    folder = find_model(name)
    if is_gguf_file(folder):
        return _open_file(folder)
    if (file := gguf_in(folder)) is not None:
        return _open_file(file)
    checkpoint = Checkpoint(folder)
    raw = raw_config(folder)
    stored = stored_format(raw, checkpoint.infos, read_sidecars(folder))
    check_readable(stored)
    shown = GUIDE_NAME if name is None else folder_name(folder)
    if not stored.is_plain:
        return _open_stored(shown, folder, raw, StoredCheckpoint(checkpoint, stored), build)
    module = build(config_from(raw), checkpoint.dtype)
    tie_weights(module, checkpoint, checkpoint)
    generation = _generation_config(folder)
    return Source(shown, folder, module, checkpoint, checkpoint.nbytes, generation, files=checkpoint.files)


def _open_stored(name: str, folder: Path, raw: dict[str, Any], weights: StoredCheckpoint, build: Build) -> Source:
    """Open a folder whose weights are already quantised."""
    module = build(config_from(raw), weights.dtype)
    tie_weights(module, weights, weights)
    kept = kept_linears(module, weights.found, weights.sketches)
    weights.kept = kept.weights
    return Source(
        name=name,
        folder=folder,
        module=module,
        weights=weights,
        nbytes=weights.nbytes,
        generation=_generation_config(folder),
        packed=PackedLinears(weights.packed, kept.pieces),
        files=weights.files,
        stored=kept.stored,
        stored_as=weights.found.title,
    )


def find_model(name: str | Path | None) -> Path:
    """Return the folder or GGUF file of a model: a path, the built-in model, or a snapshot in the Hugging Face cache.

    Raises ModelNotFound, BadRequest.
    """
    if name is None:
        return builtin_model()
    path = Path(name).expanduser()
    if path.is_absolute() or os.path.lexists(path):  # Path.exists raises if a parent directory is not accessible
        return path
    from core.hub.installed import resolve_model

    return resolve_model(str(name))


def folder_name(folder: Path) -> str:
    """Return a display name: the repository's for a snapshot in the Hugging Face cache, else the folder's."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _open_file(path: Path) -> Source:
    model = open_gguf(path)
    settings, files = model.weights.files.settings, model.weights.files
    return Source(
        name=path.stem,
        folder=None,
        module=model.module,
        weights=model.weights,
        nbytes=files.nbytes,
        generation={"eos_token_id": sorted(end_ids(settings))},
        packed=model.packed,
        files=files.files,
        stored=model.stored,
        stored_as=model.stored_as,
        tables_in_file=model.tables_in_file,
        make_tokenizer=lambda: make_tokenizer(settings, path.name),
    )


def _open_shape(name: str) -> Source:
    module = build(config_from(shape(name)), torch.bfloat16)
    weights = RandomWeights(module)
    return Source(name, None, module, weights, weights.nbytes, {"do_sample": False})


def _generation_config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # optional: it only holds defaults
        return {}
    return content if isinstance(content, dict) else {}


def _ids(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(item for item in values if isinstance(item, int))
