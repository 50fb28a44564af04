"""Selects the files of a repository that a chat needs, without duplicates: config, tokenizer and one set of safetensors
weights, or one GGUF model."""

from __future__ import annotations

import re

from core.errors import HeteGenError, ModelUnreadable, UnsupportedModel
from core.hub.cache_layout import Cache
from core.hub.gguf_choices import wanted_gguf
from core.hub.listing import Listing, RemoteFile
from core.sentence import sentence
from core.weights.weight_files import INDEX, SINGLE, is_weights, shard_names

CONFIG = "config.json"
ABOUT = re.compile(r"README\.md|(?:LICENSE|NOTICE|USE_POLICY)[\w.-]*", re.ASCII)
SMALL = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|model\.safetensors\.index\.json|tekken\.json|merges\.txt|vocab\.txt|[\w.-]+\.model|[\w.-]+\.tiktoken"
    r"|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja"
    rf"|{ABOUT.pattern}",
    re.ASCII,
)


def needed_files(listing: Listing, index: bytes | None, file: str = "") -> tuple[RemoteFile, ...]:
    """Return the needed files, small ones first. `index`: the content of the weights' index, None if there is none;
    `file`: selects one of several GGUF models.

    Raises UnsupportedModel without a config or safetensors weights, ModelUnreadable if the index names missing files,
    ModelNotFound and BadRequest if `file` matches no model or several.
    """
    if (choice := wanted_gguf(listing, file)) is not None:
        return (*(one for one in listing.files if ABOUT.fullmatch(one.path)), *choice.files)
    if listing.file(CONFIG) is None:
        raise UnsupportedModel(
            sentence("{} is no language model.", listing.id), "It has no config.json.", "Choose another one."
        )
    small = sorted((file for file in listing.files if SMALL.fullmatch(file.path)), key=lambda file: file.path)
    return (*small, *_weights(listing, index))


def shown_files(cache: Cache, listing: Listing, file: str = "") -> tuple[RemoteFile, ...] | None:
    """Return the needed files of a listing if the snapshot has all of them with their sizes, else None. Works
    offline."""
    index = listing.file(INDEX)
    folder = cache.snapshot(listing.id, listing.revision)
    try:
        files = needed_files(listing, (folder / INDEX).read_bytes() if index else None, file)
        whole = all((folder / one.path).stat().st_size == one.size for one in files)
    except (OSError, HeteGenError):
        return None
    return files if whole else None


def _weights(listing: Listing, index: bytes | None) -> tuple[RemoteFile, ...]:
    top = sorted((file for file in listing.files if "/" not in file.path), key=lambda file: file.path)
    if single := listing.file(SINGLE):
        return (single,)
    if index is not None:
        return _shards(listing, shard_names(index, listing.id))
    others = tuple(file for file in top if is_weights(file.path))
    if not others:
        raise UnsupportedModel(
            sentence("{} cannot be used here.", listing.id), _why_no_weights(top), "Choose a version in safetensors."
        )
    return others


def _shards(listing: Listing, names: frozenset[str]) -> tuple[RemoteFile, ...]:
    # Only files of the listing are taken: its names were checked, the index's were not.
    found = tuple(file for file in listing.files if file.path in names)
    if missing := names - {file.path for file in found}:
        raise ModelUnreadable(
            sentence("{} is not whole on the Hub.", listing.id),
            sentence("{} of its weight files are missing there, first {}.", len(missing), min(missing)),
            "Choose another model.",
        )
    return tuple(sorted(found, key=lambda file: file.path))


def _why_no_weights(files: list[RemoteFile]) -> str:
    names = [file.path for file in files]
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "Its weights are pickled files, which can run hidden code when opened."
    return "It holds no safetensors weights."
