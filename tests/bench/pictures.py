"""Takes screenshots of the window and its dialogs: light and dark, 1x and 2x, in every state, some in German.

`python -m tests.bench.pictures FOLDER [--scale 1] [--only PART_OF_A_NAME]`
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtGui import QFont, QFontDatabase
from PySide6.QtWidgets import QApplication

from app.settings.theme import Mode
from tests.app.dialog_screenshots import DIALOG_SCENES, HubStage
from tests.app.picture_screenshots import PICTURE_SCENES
from tests.app.screenshots import IN_GERMAN, SCENES, Stage
from tests.app.tool_screenshots import TOOL_SCENES
from tests.app.window_screenshots import WINDOW_SCENES

SCALES = ("1", "2")


def scenes(mode: Mode) -> Iterator[tuple[str, Callable[[Any], None], Callable[[], Any]]]:
    """Yield each scene's name, its actions, and the factory of its stage."""
    for name, scene in SCENES.items():
        yield name, scene, partial(Stage, mode)
        if name in IN_GERMAN:
            yield f"{name}_de", scene, partial(Stage, mode, language="de")
    for name, shown in (TOOL_SCENES | PICTURE_SCENES | WINDOW_SCENES).items():
        yield name, shown, partial(Stage, mode)
        if name in WINDOW_SCENES:
            yield f"{name}_de", shown, partial(Stage, mode, language="de")
    for name, play in DIALOG_SCENES.items():
        yield name, play, partial(HubStage, mode)


def paint(folder: Path, scale: str, only: str) -> None:
    """Save all scenes at one scale. Qt reads the scale once, so each scale needs its own process."""
    qt = QApplication([])
    qt.setStyle("Fusion")
    if "Inter" in QFontDatabase.families():
        qt.setFont(QFont("Inter"))
    for mode in ("light", "dark"):
        for name, scene, make in scenes(mode):
            if only not in name:
                continue
            stage = make()
            scene(stage)
            stage.settle()
            stage.subject.grab().save(str(folder / f"{name}-{mode}-{scale}x.png"))
            stage.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=SCALES, help="only this one")
    parser.add_argument("--only", default="", help="only scenes whose name has this in it")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.scale:
        paint(asked.folder, asked.scale, asked.only)
        return
    for scale in SCALES:
        environ = {**os.environ, "QT_SCALE_FACTOR": scale}
        environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        command = [sys.executable, "-m", "tests.bench.pictures", str(asked.folder), "--scale", scale]
        subprocess.run([*command, "--only", asked.only], env=environ, check=True)


if __name__ == "__main__":
    main()
