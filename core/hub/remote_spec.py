"""Describes a model on the Hub without its weights: its config and the headers of its files, by range requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelUnreadable
from core.events import Stop, never
from core.hub.client import Client
from core.hub.file_selection import CONFIG, needed_files
from core.hub.fit import Tensors
from core.hub.gguf_choices import wanted_gguf
from core.hub.gguf_header import HeaderReader, without_vocabulary
from core.hub.listing import Listing, ModelInfo, Reference, RemoteFile, file_address, list_files, model_info
from core.hub.retry import Stopped
from core.sentence import sentence
from core.weights.gguf.parts import is_gguf_file, open_parts
from core.weights.safetensors_header import LENGTH_BYTES, TensorInfo, header_length, parse_header, read_header
from core.weights.weight_files import INDEX, weight_files

# The header of a dense model's shard has 10-100 kB: one request reads it whole.
FIRST_BYTES = 256 << 10
THREADS = 6


@dataclass(frozen=True)
class RemoteModel:
    """A remote model: facts, config.json's content or a GGUF file's settings, tensors by name, and the files of a
    download."""

    info: ModelInfo
    config: Mapping[str, Any]
    tensors: Tensors
    files: tuple[RemoteFile, ...]

    @property
    def download_bytes(self) -> int:
        """Bytes of all needed files."""
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())


def read_remote(client: Client, reference: Reference, stop: Stop = never) -> RemoteModel:
    """Describe a model with at most two requests per safetensors file. Raises Stopped and the Hub's errors."""
    info = model_info(client, reference, stop)
    return read_listed(client, info, list_files(client, reference.id, info.revision, stop), reference.file, stop)


def read_listed(client: Client, info: ModelInfo, listing: Listing, file: str = "", stop: Stop = never) -> RemoteModel:
    """Describe a model of a repository whose files are known."""
    if (choice := wanted_gguf(listing, file)) is not None:
        found = HeaderReader(client, listing, stop).read(choice)
        return RemoteModel(info, found.settings, found.tensors, needed_files(listing, None, choice.path))
    index = _content(client, listing, INDEX) if listing.file(INDEX) else None
    files = needed_files(listing, index)
    config = _parsed(_content(client, listing, CONFIG), listing.id)
    weights = [file for file in files if file.path.endswith(".safetensors")]

    def tensors(file: RemoteFile) -> dict[str, TensorInfo]:
        if stop():
            raise Stopped
        return _tensors(client, listing, file)

    with ThreadPoolExecutor(THREADS, "headers") as pool:
        merged = {name: info for found in pool.map(tensors, weights) for name, info in found.items()}
    return RemoteModel(info, config, merged, files)


def read_config(client: Client, id: str) -> Mapping[str, Any]:
    """Return the content of config.json of a model's newest version, in one request."""
    return _parsed(client.get_bytes(file_address(client, id, "main", CONFIG), id), id)


def read_local(folder: Path) -> tuple[Mapping[str, Any], Tensors]:
    """Return config and tensors of a local model, a folder or a GGUF file. Raises ModelUnreadable."""
    if is_gguf_file(folder):
        parts = open_parts(folder)
        return without_vocabulary(parts.settings), {name: place for name, (_, place) in parts.where.items()}
    try:
        content = (folder / CONFIG).read_bytes()
    except OSError as error:
        raise ModelUnreadable(
            sentence("{} cannot be read.", folder.name), f"{error.strerror}.", "Download it again."
        ) from error
    tensors = {name: info for file in weight_files(folder) for name, info in read_header(file).items()}
    return _parsed(content, folder.name), tensors


def _content(client: Client, listing: Listing, path: str) -> bytes:
    return client.get_bytes(file_address(client, listing.id, listing.revision, path), listing.id)


def _parsed(content: bytes, id: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelUnreadable(
            sentence("{} of {} cannot be read.", CONFIG, id), "It is damaged.", "Choose another model."
        )
    return config


def _tensors(client: Client, listing: Listing, file: RemoteFile) -> dict[str, TensorInfo]:
    address = file_address(client, listing.id, listing.revision, file.path)
    begin = client.get_bytes(address, listing.id, size=FIRST_BYTES)
    length = header_length(begin, file.path)
    header = begin[LENGTH_BYTES : LENGTH_BYTES + length]
    if missing := length - len(header):
        header += client.get_bytes(address, listing.id, start=len(begin), size=missing)
    tensors = parse_header(header, file.path)
    if max((tensor.end for tensor in tensors.values()), default=0) > file.size:
        raise ModelUnreadable(
            sentence("{} of {} is cut off on the Hub.", file.path, listing.id), "", "Choose another model."
        )
    return tensors
