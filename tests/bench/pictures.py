"""Pictures of the window: light and dark, 1x and 2x, in every state. `python -m tests.bench.pictures FOLDER`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCALES = ("1", "2")


def paint(folder: Path, scale: str) -> None:
    """All scenes at one scale (Qt reads the scale once, so each scale is a process of its own)."""
    from PySide6.QtGui import QFont, QFontDatabase
    from PySide6.QtWidgets import QApplication

    from tests.app.scenes import SCENES, Stage

    qt = QApplication.instance() or QApplication([])
    assert isinstance(qt, QApplication)
    qt.setStyle("Fusion")
    if "Inter" in QFontDatabase.families():
        qt.setFont(QFont("Inter"))
    for mode in ("light", "dark"):
        for name, scene in SCENES.items():
            stage = Stage(mode)
            scene(stage)
            stage.settle()
            stage.app.window.grab().save(str(folder / f"{name}-{mode}-{scale}x.png"))
            stage.close()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 2:
        paint(folder, sys.argv[2])
        return
    for scale in SCALES:
        environ = {**os.environ, "QT_SCALE_FACTOR": scale}
        environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        subprocess.run([sys.executable, "-m", "tests.bench.pictures", str(folder), scale], env=environ, check=True)


if __name__ == "__main__":
    main()
