"""The parts of a GGUF model on this disk: found, memory-mapped, and their headers merged. No torch."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelNotFound, ModelUnreadable
from core.sentence import sentence
from core.weights.gguf.header import MAGIC, Header, Settings, TensorPlace, parse, unreadable
from core.weights.gguf.names import SUFFIX, is_gguf, is_model, split_names
from core.weights.mapped_file import map_file


@dataclass(frozen=True)
class Parts:
    """A model's files and mappings; the settings of the first; tensors by name with the index of their file."""

    files: list[Path]
    maps: list[mmap.mmap]
    settings: Settings
    where: Mapping[str, tuple[int, TensorPlace]]


def open_parts(path: Path) -> Parts:
    """Map the file, or all files that belong to it. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
    files = split_files(path)
    maps = [map_file(file) for file in files]
    headers = [parse(memoryview(one), file.name) for one, file in zip(maps, files, strict=True)]
    return Parts(files, maps, headers[0].settings, merged(headers, [file.name for file in files]))


def split_files(path: Path) -> list[Path]:
    """Return the file, or all parts of the model that it belongs to. Raises ModelNotFound, ModelUnreadable."""
    if not path.is_file():
        raise ModelNotFound(sentence("There is no model at {}.", path), "", "Check the path, or download the model.")
    files = [path.with_name(name) for name in split_names(path.name)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelUnreadable(
            sentence("{} of {} weight files are missing.", len(missing), len(files)),
            sentence("The first one is {}.", missing[0]),
            "Download the model again; what is there will be kept.",
        )
    return files


def is_gguf_file(path: Path) -> bool:
    """Return whether a file is in GGUF, by name or by content: some programs use other file names."""
    if is_gguf(path):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_in(folder: Path) -> Path | None:
    """Return the model of a folder that holds exactly one, in GGUF, and no safetensors files; else None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    models = {split_names(path.name)[0]: path for path in sorted(folder.glob(f"*{SUFFIX}")) if is_model(path.name)}
    return next(iter(models.values())) if len(models) == 1 else None


def merged(headers: list[Header], names: list[str]) -> dict[str, tuple[int, TensorPlace]]:
    """Merge tensors by name with the index of their file. Raises ModelUnreadable if the files are not one model's."""
    found: dict[str, tuple[int, TensorPlace]] = {}
    for number, header in enumerate(headers):
        said = header.settings.get("split.no", number), header.settings.get("split.count", len(headers))
        if len(headers) > 1 and said != (number, len(headers)):
            raise unreadable(names[number], "It belongs to other files than those beside it.")
        if found.keys() & header.tensors.keys():
            raise unreadable(names[number], "It holds tensors that another of the files holds too.")
        found |= {name: (number, place) for name, place in header.tensors.items()}
    return found
