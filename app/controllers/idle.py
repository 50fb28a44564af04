"""Gives the model's memory back some minutes after the last reply: a setting."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Slot

from app.controllers.server import ServerController
from app.conversations.model_session import ModelSession
from app.engine.app_state import State
from app.settings.settings import Settings

MINUTE_MS = 60_000


class IdleRest(QObject):
    """Lets the model rest once nothing was asked for a while, unless programs may ask through the local server."""

    def __init__(self, model: ModelSession, settings: Callable[[], Settings], server: ServerController) -> None:
        super().__init__()
        self._settings, self._server = settings, server
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(model.rest)

    @Slot(object)
    def on_state(self, state: State) -> None:
        """Counts from here where the model waits for a question, and not at all otherwise."""
        minutes = self._settings().keep_loaded_minutes
        if state.phase == "ready" and minutes is not None and not self._server.runs:
            self._timer.start(minutes * MINUTE_MS)
        else:
            self._timer.stop()

    def stop(self) -> None:
        """Counts no more."""
        self._timer.stop()
