"""The files of a model in GGUF, one or split, as one read-only mapping of raw rows, mapped into memory, not read."""

from __future__ import annotations

import mmap
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ModelNotFound, ModelUnreadable
from core.sentence import sentence
from core.weights.gguf.header import Header, Settings, TensorPlace, parse, unreadable

SUFFIX = ".gguf"
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
MAX_SPLITS = 1000
READ_BLOCK = 16 << 20


class GgufFiles:
    """Settings of the first file, tensors of all; raw bytes are views that stay valid as long as they live."""

    def __init__(self, path: Path) -> None:
        """Maps all files and reads their headers. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
        self.files = split_files(path)
        self._maps = [_map(file) for file in self.files]
        headers = [parse(memoryview(one), file.name) for one, file in zip(self._maps, self.files, strict=True)]
        self.settings: Settings = headers[0].settings
        self._where = merged(headers, [file.name for file in self.files])
        self.tensors: dict[str, TensorPlace] = {name: place for name, (_, place) in self._where.items()}

    @property
    def nbytes(self) -> int:
        return sum(place.nbytes for place in self.tensors.values())

    def raw(self, name: str) -> Tensor:
        """The bytes of a tensor, (rows, bytes of a row), all dimensions but the last taken as rows."""
        number, place = self._where[name]
        if place.nbytes == 0:
            return torch.empty((0, 0), dtype=torch.uint8)
        with warnings.catch_warnings():
            # torch warns that the buffer is read-only, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(self._maps[number], dtype=torch.uint8, count=place.nbytes, offset=place.start)
        return flat.view(-1, place.row_bytes)

    def warm(self) -> Iterator[float]:
        """Read the files once, so that the mapping finds its pages in memory; yields the fraction read."""
        done, total = 0, sum(len(one) for one in self._maps)
        block = bytearray(READ_BLOCK)
        for path in self.files:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    done += count
                    yield done / total


def is_gguf(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return str(name).lower().endswith(SUFFIX)


def split_names(name: str) -> list[str]:
    """The names of all files that the one of this name belongs to, in order. Raises ModelUnreadable."""
    found = SPLIT.fullmatch(name)
    if found is None:
        return [name]
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count <= MAX_SPLITS:
        raise unreadable(name, "Its name says that it is part of a whole that cannot be.")
    return [f"{found['stem']}-{number:05}-of-{found['count']}{name[-5:]}" for number in range(1, count + 1)]


def split_files(path: Path) -> list[Path]:
    """The file itself, or all parts of the model that it is a part of. Raises ModelNotFound, ModelUnreadable."""
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


def gguf_in(folder: Path) -> Path | None:
    """The model of a folder that holds one in GGUF and no other weights; None for any other folder."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    models = {
        split_names(path.name)[0]: path for path in sorted(folder.glob(f"*{SUFFIX}")) if "mmproj" not in path.name
    }
    return next(iter(models.values())) if len(models) == 1 else None


def merged(headers: list[Header], names: list[str]) -> dict[str, tuple[int, TensorPlace]]:
    """Tensors by name with the number of their file. Raises ModelUnreadable where the files are not of one model."""
    found: dict[str, tuple[int, TensorPlace]] = {}
    for number, header in enumerate(headers):
        said = header.settings.get("split.no", number), header.settings.get("split.count", len(headers))
        if len(headers) > 1 and said != (number, len(headers)):
            raise unreadable(names[number], "It belongs to other files than those beside it.")
        if found.keys() & header.tensors.keys():
            raise unreadable(names[number], "It holds tensors that another of the files holds too.")
        found |= {name: (number, place) for name, place in header.tensors.items()}
    return found


def _map(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelUnreadable(
            sentence("{} cannot be opened.", file.name), f"{error}.", "Download the model again."
        ) from error
