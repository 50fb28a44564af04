"""Collects the licence texts of all bundled libraries from the build environment."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = re.compile(r"\.dist-info/licenses/|(^|/)(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*$", re.IGNORECASE)
"""A wheel's licence folder also holds the licences of bundled code, under any name."""
OURS = {
    "pyside6-essentials": "LGPL-3.0.txt",
    "shiboken6": "LGPL-3.0.txt",
    "tokenizers": "Apache-2.0.txt",
    "nvidia-ml-py": "nvidia-ml-py.txt",
}
"""Wheels without licence files; their texts are in `assets/licences/`."""
SYSTEM = {
    "OpenSSL": "libssl3*", "SQLite": "libsqlite3-0", "libffi": "libffi[78]", "bzip2": "libbz2-1.0",
    "XZ Utils": "liblzma5",
}  # fmt: skip
"""System libraries that Python needs on Linux, with their Debian packages. Elsewhere Python's own text covers them."""


def collect(folder: Path) -> list[str]:
    """Write the texts to `folder`/NAME/… with an index; return the libraries without a text (there must be none)."""
    shutil.rmtree(folder, ignore_errors=True)
    lines, lacking = ["library\tversion\tlicence\ttexts"], []
    for name, found in sorted(shipped().items()):
        texts = sorted(_copy(found, folder / name))
        if not texts and name in OURS:
            texts = [f"../{OURS[name]}"]
        lacking += [] if texts else [name]
        lines.append("\t".join((found.metadata["Name"], found.version, _kind(found), ", ".join(texts))))
    lines.append("\t".join(("Python", sys.version.split()[0], "PSF-2.0", _python(folder))))
    if sys.platform == "linux":
        lines += _system(folder)
    (folder / "index.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lacking


def shipped() -> dict[str, Distribution]:
    """Return the project's installed dependencies, recursively."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, Distribution] = {}
    todo = list(project["dependencies"])
    while todo:
        requirement = todo.pop()
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        name = re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""
        if not name or name in found or "extra ==" in requirement:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            # For another system or Python version: not installed, so not shipped.
            continue
        todo += found[name].requires or []
    return found


def _copy(found: Distribution, folder: Path) -> Iterator[str]:
    for file in found.files or []:
        # Skip texts of vendored libraries: their own text is beside them.
        if not file.parts[0].endswith(".dist-info") or not TEXTS.search(file.as_posix()):
            continue
        inside = file.as_posix().partition(".dist-info/")[2].removeprefix("licenses/")
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)
        yield f"{folder.name}/{inside}"


def _kind(found: Distribution) -> str:
    metadata = found.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if "License ::" in line]
    expressions, free = metadata.get_all("License-Expression") or [], metadata.get_all("License") or []
    named = [*expressions, ", ".join(classifiers), *free]
    return next((text.splitlines()[0] for text in named if text), "see its text")


def _python(folder: Path) -> str:
    places = (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", Path(sys.base_prefix) / "LICENSE.txt")
    for text in places:
        if text.exists():
            shutil.copyfile(text, folder / "Python.txt")
            return "Python.txt"
    raise SystemExit(f"Python's licence is in none of {', '.join(map(str, places))}.")


def _system(folder: Path) -> Iterator[str]:
    for name, package in SYSTEM.items():
        text = next(Path("/usr/share/doc").glob(f"{package}/copyright"), None)
        if text is None:
            raise SystemExit(f"The licence of {name} is not in /usr/share/doc/{package}/.")
        target = folder / f"{name}.txt"
        shutil.copyfile(text, target)
        yield "\t".join((name, "of the building system", "see its text", target.name))
