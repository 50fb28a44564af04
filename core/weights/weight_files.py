"""Finds the weight files of a model folder, or says why it has none that can be read. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from core.errors import ModelNotFound, ModelUnreadable, UnsupportedModel
from core.sentence import joined, sentence
from core.weights.safetensors_header import read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_NAMED = 3
"""The most files to name in a message."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
NOT_WEIGHTS = re.compile(
    r"consolidated|adapter[._-](model|config|weights)|adapter\.|lora\.|pytorch_lora_weights|optimizer|rng_state",
    re.IGNORECASE,
)
"""Beginnings of names: copies of the weights for other programs, adapters, and training states."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, all shards present. Raises ModelNotFound, ModelUnreadable, ..."""
    check_folder(folder)
    if (folder / SINGLE).is_file():  # an index beside it is left over from shards that were merged
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder)
    files = sorted(file for file in folder.glob("*.safetensors") if is_weights(file.name) and file.is_file())
    if files and not (len(files) == 1 and _is_adapter(files[0])):
        return files
    raise _no_weights(folder)


def _is_adapter(file: Path) -> bool:
    """Return whether a file, whatever its name, holds only an adapter."""
    names = read_header(file)
    return bool(names) and all("lora_" in name for name in names)


def check_folder(folder: Path) -> None:
    """Check for a readable directory with a config.json. Raises ModelNotFound, ModelUnreadable."""
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError as error:
        raise ModelNotFound(
            sentence("There is no model at {}.", folder), "", "Check the path, or download the model."
        ) from error
    except NotADirectoryError as error:
        raise ModelUnreadable(
            sentence("{} is a file.", folder.name),
            "A model is a GGUF file, or a folder with config.json and *.safetensors files.",
            "Choose the folder that holds it.",
        ) from error  # fmt: skip
    except OSError as error:
        raise ModelUnreadable(
            sentence("The folder {} may not be read.", folder),
            sentence("The system says: {}.", error.strerror),
            "Change its permissions.",
        ) from error
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")):
            raise _several_gguf(folder)
        raise ModelUnreadable(
            sentence("{} holds no model.", folder.name or folder.absolute()),
            "There is neither a config.json nor a GGUF file in it.",
            "Choose the folder of a whole model.",
        )


def is_weights(path: str) -> bool:
    """Return whether a file of this name may hold a model's weights: no adapter, no copy for other programs."""
    return path.endswith(".safetensors") and not NOT_WEIGHTS.match(PurePosixPath(path).name)


def shard_names(index: bytes, model: str) -> frozenset[str]:
    """Return the weight files that an index names, all below its own folder. Raises ModelUnreadable."""
    try:
        names = frozenset(str(name) for name in json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_index(model, "It is damaged.", "Download the model again.") from error
    if not all(map(_is_below, names)):
        raise _bad_index(model, "It names files outside its folder.", "Do not use it.")
    return names


def _is_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and not {"..", "~"} & set(parts) and not set(name) & set("\\:\0")


def _bad_index(model: str, why: str, next_step: str) -> ModelUnreadable:
    return ModelUnreadable(sentence("{} of {} cannot be read.", INDEX, model), why, next_step)


def _shards(folder: Path) -> list[Path]:
    try:
        content = (folder / INDEX).read_bytes()
    except OSError as error:
        raise _bad_index(folder.name, f"{error.strerror or error}.", "Download the model again.") from error
    names = sorted(shard_names(content, folder.name))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelUnreadable(
            sentence("{} of {} weight files are missing.", len(missing), len(names)),
            sentence("The first one is {}.", missing[0]),
            "Download the model again; what is there will be kept.",
        )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> UnsupportedModel:
    if any(any(folder.glob(pattern)) for pattern in PICKLED):
        return UnsupportedModel(
            "This model comes only as pickled weights.",
            "Such files can run programs when they are opened, so they are never opened here.",
            "Choose a version of the model with safetensors files.",
        )
    if any(folder.glob("*.gguf")):
        return _several_gguf(folder)
    return UnsupportedModel(
        "There are no weights in this folder.", "No *.safetensors file is there.", "Download the whole model."
    )


def _several_gguf(folder: Path) -> UnsupportedModel:
    """Return the error for a folder in which no GGUF file, or more than one, is a model by itself."""
    names = sorted(file.name for file in folder.glob("*.gguf"))
    return UnsupportedModel(
        "It is not clear which GGUF file of this folder is meant.",
        sentence("There are {}.", joined(", ", [*names[:MOST_NAMED], *["…"] * (len(names) > MOST_NAMED)])),
        "Choose one of the files.",
    )
