"""Pictures of the window and its dialogs: light and dark, 1x and 2x, in every state, some of them in German.

`python -m tests.bench.pictures FOLDER [--scale 1] [--only PART_OF_A_NAME]`
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

SCALES = ("1", "2")


def paint(folder: Path, scale: str, only: str) -> None:
    """All scenes at one scale (Qt reads the scale once, so each scale is a process of its own)."""
    from PySide6.QtGui import QFont, QFontDatabase
    from PySide6.QtWidgets import QApplication

    from tests.app.dialog_scenes import DIALOG_SCENES, HubStage
    from tests.app.scenes import IN_GERMAN, SCENES, Stage

    qt = QApplication.instance() or QApplication([])
    assert isinstance(qt, QApplication)
    qt.setStyle("Fusion")
    if "Inter" in QFontDatabase.families():
        qt.setFont(QFont("Inter"))
    for mode in ("light", "dark"):
        scenes = [(name, SCENES[name], lambda: Stage(mode)) for name in SCENES]
        scenes += [(f"{name}_de", SCENES[name], lambda: Stage(mode, language="de")) for name in IN_GERMAN]
        scenes += [(name, DIALOG_SCENES[name], lambda: HubStage(mode)) for name in DIALOG_SCENES]
        for name, scene, make in scenes:
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
