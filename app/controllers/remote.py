"""Remote models: an address is tested beside the window, and its model is loaded as any other."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.engine.remote_state import RemoteState
from app.engine.task_thread import TaskThread, Tell
from app.settings.theme import Theme
from core.errors import HeteGenError
from core.events import Stop
from core.hub.token import system_keyring
from core.remote.check import Outcome, check
from core.remote.endpoint import Endpoint, base_url
from core.remote.keys import keep_key, key_of


class RemoteController(QObject):
    """Signals: `changed(RemoteState)`; `chosen(source)` when a remote model is to answer."""

    changed = Signal(object)
    chosen = Signal(str)

    def __init__(self, theme: Theme, window: QWidget) -> None:
        super().__init__()
        self._theme, self._window = theme, window
        # Naming a computer and connecting may take seconds.
        self._thread = TaskThread("remote")
        self._thread.told.connect(self._on_told)
        self._thread.done.connect(self._on_done)
        self._thread.failed.connect(self._on_failed)
        self._ticket = 0
        self.state = RemoteState()

    @Slot()
    def open(self) -> None:
        """Show the page."""
        # Imported late: most starts never open it.
        from app.views.models.remote_dialog import RemoteDialog

        dialog = RemoteDialog(self._theme, self.state, self._window)
        dialog.test_wished.connect(self.test)
        dialog.connect_wished.connect(self.connect_to)
        self.changed.connect(dialog.show_state)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    @Slot(str, str)
    def test(self, address: str, key: str) -> None:
        """Try to reach the server, step by step; an empty key is the one kept for it."""
        self._thread.stop_all()
        self._set(RemoteState(address, busy=True))
        self._ticket = self._thread.run(lambda stop, tell: _test(address, key, stop, tell))

    @Slot(str, str, str)
    def connect_to(self, address: str, key: str, model: str) -> None:
        """Let a model there answer from now on; its key is kept in the system's keyring."""
        try:
            endpoint = Endpoint(base_url(address), model)
        except HeteGenError as error:
            self._set(RemoteState(address, outcomes=(Outcome("address", error),)))
            return
        if key:
            self._thread.run(lambda stop, tell: keep_key(system_keyring(), endpoint.url, key))
        self.chosen.emit(endpoint.source)

    def close(self) -> None:
        """Stop and join; the window closes."""
        self._thread.close()

    @Slot(int, object)
    def _on_told(self, ticket: int, outcome: Outcome) -> None:
        if ticket == self._ticket:
            self._set(replace(self.state, outcomes=(*self.state.outcomes, outcome)))

    @Slot(int, object)
    def _on_done(self, ticket: int, _: object) -> None:
        if ticket == self._ticket:
            self._set(replace(self.state, busy=False))

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._ticket:
            self._set(replace(self.state, busy=False, outcomes=(*self.state.outcomes, Outcome("path", error))))

    def _set(self, state: RemoteState) -> None:
        self.state = state
        self.changed.emit(state)


def _test(address: str, key: str, stop: Stop, tell: Tell) -> None:
    try:
        known = key or key_of(system_keyring(), base_url(address))
    except HeteGenError:
        known = key
    for outcome in check(address, known):
        if stop():
            return
        tell(outcome)
