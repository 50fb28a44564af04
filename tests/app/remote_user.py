"""A user of the whole window whose model is on a server: connects by the page, asks, stops, reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from PySide6.QtCore import QEvent, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QPushButton

from app.application import Application, StartOptions
from app.conversations.conversation import Turn
from app.engine.engine_import import make_engine
from app.notices.notices import Notice
from app.views.chat.body import Body
from app.views.controls.controls import IconButton
from app.views.models.remote_dialog import RemoteDialog
from tests.app.find import find
from tests.app.waiting import until
from tests.core.keyring_in_memory import Ring

LONG_S = 120.0


class RemoteUser:
    """Drives an application as a user does: by fields, keys and buttons."""

    def __init__(self, app: Application) -> None:
        self.app = app

    def settle(self) -> None:
        """Wait until the model of the start is loaded or refused."""
        state = self.app.session.model
        until(lambda: state.state.phase in ("ready", "empty") and bool(state.state.source), LONG_S)

    def connect(self, url: str, key: str, model: str = "") -> None:
        """Fill in the page of remote models, press Connect, and wait until the model is loaded or refused."""
        state = self.app.session.model
        self.settle()
        self.app.window.actions_by_id["remote"].trigger()
        [dialog] = [each for each in self.app.window.findChildren(RemoteDialog) if each.isVisible()]
        find(dialog, QPushButton, "New server").click()
        for field, text in ((dialog.address, url), (dialog.key, key)):
            field.clear()
            QTest.keyClicks(field, text)
        dialog.model.setCurrentText(model)
        loads: list[str] = []
        state.changed.connect(lambda each: loads.append(each.phase))
        dialog.connect_button.click()
        until(lambda: "loading" in loads and loads[-1] != "loading", LONG_S)

    def begin(self, text: str) -> Turn:
        """Send a question; return its reply once it has begun or failed."""
        rows = self.app.chat.rowCount()
        composer = self.app.window.composer
        composer.set_text(text)
        QTest.keyClick(composer.edit, Qt.Key.Key_Return)
        until(lambda: self.app.chat.rowCount() == rows + 2, LONG_S)
        reply = self.app.chat.turn(rows + 1)
        until(lambda: len(reply.content) > 8 or not self.app.session.state.busy, LONG_S)
        return reply

    def ask(self, text: str) -> Turn:
        """Send a question; return its reply when it has ended."""
        reply = self.begin(text)
        self.wait()
        return reply

    def stop(self) -> None:
        """Press Stop, which replaces Send, and wait until the reply has ended."""
        find(self.app.window.composer, IconButton, "Stop").click()
        self.wait()

    def wait(self) -> None:
        """Wait until no reply is written."""
        until(lambda: not self.app.session.state.busy, LONG_S)

    def shown(self, turn: Turn) -> str:
        """Return a turn's text in the transcript, once it is laid out."""
        view = self.app.window.transcript.view_of(turn.id)
        assert view is not None
        body = view.findChild(Body)
        assert body is not None
        until(lambda: body.settled)
        return "\n".join(edit.toPlainText() for edit in body.edits())

    def notices(self) -> list[Notice]:
        """Return the notices in the window, newest last."""
        return self.app.window.notices.notices


@contextmanager
def remote_user(start: str = "") -> Iterator[RemoteUser]:
    """Start the application with a keyring in memory; without `start` it loads the guide.

    HETEGEN_HOME is the folder of its files.
    """
    ring = Ring()
    users = [f"app.{place}.system_keyring" for place in ("controllers.remote", "engine.engine_import", "application")]
    with patch(users[0], lambda: ring), patch(users[1], lambda: ring), patch(users[2], lambda: ring):
        app = Application(StartOptions(start), make_engine)
        app.window.show()
        QApplication.processEvents()
        try:
            yield RemoteUser(app)
        finally:
            app.close()
            app.window.close()
            app.window.deleteLater()
            QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
