"""Services of the model dialog are left without joining when the settings name another models folder."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from app.catalog.catalog import Catalog
from app.controllers.models import ModelController
from app.settings.settings import Settings
from app.settings.theme import Theme
from app.system.paths import Places
from core.events import LoadOptions
from tests.app.dialog_fixture import check_fit


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def catalogs(monkeypatch: pytest.MonkeyPatch) -> list[Catalog]:
    """Collect the catalogs created from now on."""
    made: list[Catalog] = []

    class Kept(Catalog):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("app.catalog.catalog.Catalog", Kept)
    return made


def test_another_address_is_taken_while_the_old_one_does_not_answer(
    qtbot: QtBot, tmp_path: Path, silent: socket.socket, catalogs: list[Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.controllers.models.late_fit_check", lambda options: check_fit)
    window = QWidget()
    qtbot.addWidget(window)
    kept = [Settings(hf_endpoint=address(silent), models_folder=str(tmp_path / "models"))]
    places = Places(tmp_path, tmp_path, tmp_path, tmp_path)
    desk = ModelController(Theme("light"), places, lambda: kept[0], LoadOptions, window)
    desk.open()
    (catalog,) = catalogs
    catalog.search("heron", "trendingScore")
    waiting, _ = silent.accept()  # from now on the search waits for an answer
    kept[0] = replace(kept[0], hf_endpoint="http://127.0.0.1:9")
    desk.on_settings(kept[0])
    assert not catalog.ended, "it was waited for"
    desk.open()
    assert len(catalogs) == 2
    waiting.close()
    silent.close()
    qtbot.waitUntil(lambda: catalog.ended)
    desk.close()
    assert all(one.ended for one in catalogs)
