from pathlib import Path

from PySide6.QtNetwork import QLocalServer
from pytestqt.qtbot import QtBot

from app.single_instance import SingleInstance


def test_the_second_wakes_the_first(qtbot: QtBot, tmp_path: Path) -> None:
    first, second = SingleInstance(tmp_path), SingleInstance(tmp_path)
    assert first.claim()
    with qtbot.waitSignal(first.woken):
        assert not second.claim()
    first.release()
    assert second.claim()
    second.release()


def test_other_data_is_another_program(qapp: object, tmp_path: Path) -> None:
    first, second = SingleInstance(tmp_path / "a"), SingleInstance(tmp_path / "b")
    assert first.claim()
    assert second.claim()
    first.release()
    second.release()


def test_what_a_crash_left_is_no_hindrance(qapp: object, tmp_path: Path) -> None:
    dead = SingleInstance(tmp_path)
    assert dead.claim()
    place = Path(dead._server.fullServerName())
    dead.release()
    if place.is_absolute():
        place.touch()
    again = SingleInstance(tmp_path)
    assert again.claim()
    assert again._server.isListening()
    again.release()
    assert QLocalServer.removeServer(again._name)
