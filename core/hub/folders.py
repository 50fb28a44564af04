"""Model folders anywhere on this computer that are used in place: a list of paths in a small file."""

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
    """The list stored in `file`. Nothing is copied, and removing a folder from the list deletes nothing."""

    file: Path

    def add(self, folder: Path) -> Installed:
        """Add a folder to the list. Raises ModelUnreadable if it holds no complete safetensors model."""
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
        """Remove a folder from the list; its files stay."""
        self._write([path for path in self._paths() if path != folder])

    def installed(self) -> tuple[Installed, ...]:
        """Return the folders that exist now; those on an absent drive are omitted but stay on the list."""
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
    """Describe a folder as a model; None if it is not one."""
    weights = [path for path in folder.glob("*.safetensors") if path.is_file()]
    if not weights or not (folder / CONFIG).is_file():
        return None
    size = sum(path.stat().st_size for path in weights)
    return Installed(folder.name, "", folder, size, size, is_whole(folder))
