"""Versions and licences of the program and its libraries, for a source checkout and for a bundle."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

import PySide6
from PySide6.QtCore import qVersion

from app.i18n.formatting import unknown

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "jinja2", "psutil",
    "nvidia-ml-py", "platformdirs", "keyring", "markdown-it-py", "pygments",
)  # fmt: skip
"""Libraries listed when running from source. A bundle brings its own index."""
TEXT_NAMES = ("licen", "copying", "notice", "authors")


@dataclass(frozen=True)
class Licence:
    """One part of the program. `kind`: the licence's short name; `texts`: the files with its full text."""

    name: str
    version: str
    kind: str
    texts: tuple[Path, ...]


def versions() -> tuple[tuple[str, str], ...]:
    """Return names and versions for bug reports, without importing the packages."""
    found = [(name, _version(name)) for name in ("torch", "transformers")]
    return (("Qt", qVersion()), ("PySide6", PySide6.__version__), *found, ("Python", platform.python_version()))


def qt_folder() -> Path:
    """Return the folder of the Qt libraries, which users may replace."""
    return Path(PySide6.__file__).resolve().parent


def licences(folder: Path) -> list[Licence]:
    """List all parts with their licences, HeteGen and Qt first. `folder`: `assets/licences`."""
    notice, lesser = folder / "NOTICE.txt", (folder / "LGPL-3.0.txt", folder / "GPL-3.0.txt")
    index = folder / "texts" / "index.tsv"
    others = _from_index(index) if index.is_file() else _from_environment(folder)
    return [
        Licence("HeteGen", "", "Apache-2.0", (notice, folder / "Apache-2.0.txt")),
        Licence("Qt, PySide6", PySide6.__version__, "LGPL-3.0-only", (notice, *lesser)),
        *others,
    ]


def read_texts(licence: Licence) -> str:
    """Return the full text of a licence."""
    return "\n\n\n".join(path.read_text("utf-8", errors="replace").strip() for path in licence.texts)


def _from_index(index: Path) -> Iterator[Licence]:
    """Read a bundle's index: one library per line (name, version, licence, texts) after a header line."""
    for line in index.read_text("utf-8").splitlines()[1:]:
        name, number, kind, texts = (line.split("\t") + [""] * 4)[:4]
        paths = (index.parent / text for text in texts.split(", ") if text)
        yield Licence(name, number, kind, tuple(path for path in paths if path.is_file()))


def _from_environment(folder: Path) -> Iterator[Licence]:
    for name in LIBRARIES:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        ours = folder / f"{name}.txt"
        texts = tuple(_texts(found)) or ((ours,) if ours.is_file() else ())
        yield Licence(name, found.version, _kind(found), texts)


def _texts(found: Distribution) -> Iterator[Path]:
    for file in found.files or ():
        if ".dist-info" in file.parts[0] and file.name.lower().startswith(TEXT_NAMES):
            path = Path(str(file.locate()))
            if path.is_file():
                yield path


def _kind(found: Distribution) -> str:
    said = [found.metadata[key] for key in ("License-Expression", "License") if key in found.metadata]
    return said[0].splitlines()[0][:40] if said and said[0] else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return unknown()
