"""Every scene that pictures of the window are taken of can still be played and painted."""

from __future__ import annotations

import pytest
from PySide6.QtWidgets import QApplication

from tests.bench.pictures import scenes

PLAYED = {name: (scene, make) for name, scene, make in scenes("light") if not name.endswith("_de")}
SHADES = 16
"""Fewer than these are a surface with nothing on it: letters alone have more at their edges."""


@pytest.mark.parametrize("name", PLAYED)
def test_a_scene_is_played_and_painted(name: str, qapp: QApplication) -> None:
    scene, make = PLAYED[name]
    stage = make()
    try:
        scene(stage)
        QApplication.processEvents()
        painted = stage.subject.grab().toImage()
        assert len(set(painted.constBits())) > SHADES
    finally:
        stage.close()
