"""Every scene of the screenshots can be played and painted."""

from __future__ import annotations

import pytest
from PySide6.QtWidgets import QApplication

from tests.bench.pictures import scenes

PLAYED = {name: (scene, make) for name, scene, make in scenes("light") if not name.endswith("_de")}
SHADES = 16
"""Fewer shades mean an empty surface: text alone has more at its edges."""


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
