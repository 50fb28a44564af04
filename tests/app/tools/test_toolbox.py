"""The toolbox beside a keyring that is locked: the user's changes wait for it, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from app.tools.toolbox import Toolbox
from core.tools.book import Book, read_book, write_book
from core.tools.server import ToolServer
from tests.core.keyring_in_memory import Ring

OLD = ToolServer("old", "nothing", environment={"TOKEN": "secret"}, on=False)
NEW = ToolServer("new", "nothing", environment={"TOKEN": "other"}, on=False)


class LockedRing(Ring):
    """Answers once it is unlocked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.unlocked = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.asked.set()
        assert self.unlocked.wait(60)

    def get_password(self, service: str, name: str) -> str | None:
        self.wait()
        return super().get_password(service, name)

    def set_password(self, service: str, name: str, password: str) -> None:
        self.wait()
        super().set_password(service, name, password)


@pytest.fixture
def ring() -> LockedRing:
    return LockedRing()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tools.json"


@pytest.fixture
def toolbox(qapp: object, ring: LockedRing, path: Path) -> Iterator[Toolbox]:
    made = Toolbox(path, lambda: ring)
    yield made
    ring.unlocked.set()
    made.close()


def keep_one(ring: LockedRing, path: Path) -> None:
    ring.unlocked.set()
    write_book(path, Book((OLD,)), Book(), ring)
    ring.unlocked.clear()
    ring.asked.clear()


def test_what_is_changed_while_the_keyring_is_locked_is_added_to_what_was_kept(
    qtbot: QtBot, toolbox: Toolbox, ring: LockedRing, path: Path
) -> None:
    keep_one(ring, path)
    toolbox.open()
    assert ring.asked.wait(60)
    toolbox.put(NEW)
    toolbox.permit("old", "echo", "always")
    assert toolbox.state.book.servers == (NEW,), "shown at once"
    ring.unlocked.set()
    qtbot.waitUntil(lambda: toolbox.state.book.servers == (OLD, NEW))
    assert toolbox.state.book.permission("old", "echo") == "always"
    toolbox.close()
    assert read_book(path, ring) == toolbox.state.book


def test_what_was_changed_last_is_kept_when_the_window_closes(toolbox: Toolbox, ring: LockedRing, path: Path) -> None:
    toolbox.put(NEW)
    assert ring.asked.wait(60)
    toolbox.permit("new", "echo", "never")
    threading.Timer(0.5, ring.unlocked.set).start()  # while `close` waits for the thread
    toolbox.close()
    assert read_book(path, ring) == Book((NEW,), {("new", "echo"): "never"})
