"""Model folders that lie anywhere on this computer and are used in place: a list of their paths in a small file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelUnreadable
from core.files import write_whole
from core.hub.file_selection import CONFIG
from core.hub.installed import Installed, is_whole
from core.sentence import sentence


@dataclass(frozen=True)
class Folders:
    """The list kept in `file`. Nothing is copied, and nothing is deleted when a folder is taken off the list."""

    file: Path

    def add(self, folder: Path) -> Installed:
        """Put a folder on the list. Raises ModelUnreadable when it holds no whole safetensors model."""
        folder = folder.expanduser().resolve()
        model = describe(folder)
        if model is None or not model.complete:
            why = (
                sentence("There is no config.json with safetensors files in it.")
                if model is None
                else sentence("Some weights are missing.")
            )
            raise ModelUnreadable(sentence("{} holds no whole model.", folder.name), why, "Choose another folder.")
        if folder not in self._paths():
            self._write([*self._paths(), folder])
        return model

    def remove(self, folder: Path) -> None:
        """Take a folder off the list; its files stay."""
        self._write([path for path in self._paths() if path != folder])

    def installed(self) -> tuple[Installed, ...]:
        """The folders that are there now; those on a drive that is away are left out, not forgotten."""
        return tuple(model for path in self._paths() if (model := describe(path)))

    def _paths(self) -> list[Path]:
        try:
            return [Path(text) for text in json.loads(self.file.read_text("utf-8"))]
        except (OSError, ValueError, TypeError):
            return []

    def _write(self, paths: list[Path]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps([str(path) for path in paths]))


def describe(folder: Path) -> Installed | None:
    """A folder as a model; None if it is none."""
    weights = [path for path in folder.glob("*.safetensors") if path.is_file()]
    if not weights or not (folder / CONFIG).is_file():
        return None
    size = sum(path.stat().st_size for path in weights)
    return Installed(folder.name, "", folder, size, size, is_whole(folder))
