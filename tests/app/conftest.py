"""Test setup of the window: offscreen Qt, a temporary home, and a check that no test leaves a thread behind."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PySide6.QtCore import QCoreApplication, QEvent
from pytestqt.qtbot import QtBot

from app.conversations.store_schema import open_database

if TYPE_CHECKING:
    from PySide6.QtCore import SignalInstance
    from PySide6.QtWidgets import QWidget
    from pytestqt.wait_signal import SignalBlocker

    from app.application import Application, StartOptions
    from app.engine.worker import EngineLike

Start = Callable[..., "Application"]
LONG_MS = 120_000
"""How long a test waits for what must happen: programs that it starts compete with other tests for two cores."""
PATIENCE_S = 60.0
"""How long a thread that was told to end may take: a busy machine runs it late."""
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


class PatientBot(QtBot):
    """A QtBot that waits as long as a busy machine may need; what never happens still fails."""

    def waitUntil(self, callback: Callable[[], bool | None], *, timeout: int = LONG_MS) -> None:
        super().waitUntil(callback, timeout=timeout)

    def waitSignal(self, signal: SignalInstance, *, timeout: int = LONG_MS, **how: Any) -> SignalBlocker:
        return super().waitSignal(signal, timeout=timeout, **how)

    def waitExposed(self, widget: QWidget, *, timeout: int = LONG_MS) -> AbstractContextManager[None]:
        return super().waitExposed(widget, timeout=timeout)


@pytest.fixture
def qtbot(qapp: object, request: pytest.FixtureRequest) -> QtBot:
    return PatientBot(request)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def notices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep notices for as long as a busy machine may need to look at them; `test_notice_bar` lets them leave."""
    monkeypatch.setattr("app.views.frame.notice_bar.LEAVES_AFTER_MS", LONG_MS)


@pytest.fixture
def start(qtbot: QtBot) -> Iterator[Start]:
    """Start the application with an engine and wait until the model is loaded; all are closed after the test."""
    from app.application import Application, StartOptions

    started: list[Application] = []

    def begin(engine: EngineLike, wishes: StartOptions | None = None, phase: str = "ready") -> Application:
        app = Application(wishes or StartOptions("some/model"), lambda: engine)
        started.append(app)
        app.window.show()
        qtbot.waitUntil(lambda: bool(app.session.state.source) and app.session.state.phase == phase)
        return app

    yield begin
    for app in started:
        app.close()
        app.window.close()
        app.window.deleteLater()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Collect the connections that stores open from now on, to be made full, slow or broken."""
    opened: list[sqlite3.Connection] = []

    def open_and_keep(path: Path, *patience_s: float) -> sqlite3.Connection:
        opened.append(open_database(path, *patience_s))
        return opened[-1]

    monkeypatch.setattr("app.conversations.store_file.open_database", open_and_keep)
    return opened


@pytest.fixture(autouse=True)
def garbage_is_collected_here() -> Iterator[None]:
    """Prevent garbage collection in other threads: a widget's timers would outlive it and crash a later test.

    What was there before is exempt, and takes no time: a collection and a search after each test.
    """
    gc.disable()
    gc.freeze()
    yield
    gc.collect()
    gc.enable()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind; one that is about to end is given the time to. Then delete widgets."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + PATIENCE_S
    while (left := _running_threads(before)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left, f"threads still run: {left}"
    if QCoreApplication.instance():
        QCoreApplication.processEvents()  # what threads have told before their end
        # Outside of an event loop Qt keeps what is to be deleted later, and the next tests would restyle all of it.
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def _running_threads(before: set[threading.Thread]) -> list[str]:
    # A Qt thread that has run Python stays in the list as a dummy for good; Qt threads are checked themselves.
    started = [thread for thread in threading.enumerate() if thread not in before]
    return [t.name for t in started if not isinstance(t, threading._DummyThread)] + _running_qt_threads()


def _running_qt_threads() -> list[str]:
    from PySide6.QtCore import QThread
    from shiboken6 import isValid

    threads = [item for item in gc.get_objects() if issubclass(type(item), QThread) and isValid(item)]
    return [thread.objectName() for thread in threads if thread.isRunning() and not thread.isCurrentThread()]
