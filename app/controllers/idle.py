"""Frees the model's memory some minutes after the last reply, if the settings say so."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Slot

from app.controllers.server import ServerController
from app.conversations.model_session import ModelSession
from app.engine.app_state import State
from app.settings.settings import Settings

MINUTE_MS = 60_000


class IdleRest(QObject):
    """Unloads an idle model, unless the local server runs and programs may ask."""

    def __init__(self, model: ModelSession, settings: Callable[[], Settings], server: ServerController) -> None:
        super().__init__()
        self._settings, self._server = settings, server
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(model.rest)

    @Slot(object)
    def on_state(self, state: State) -> None:
        """Restart the timer while the model waits for a question; stop it otherwise."""
        minutes = self._settings().keep_loaded_minutes
        if state.phase == "ready" and minutes is not None and not self._server.runs:
            self._timer.start(minutes * MINUTE_MS)
        else:
            self._timer.stop()

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.stop()
