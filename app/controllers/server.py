"""The local server beside the chat, started and stopped from its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.engine.server_backend import ServerBackend
from app.engine.server_state import ServerState
from app.engine.task_thread import TaskThread
from app.engine.worker import Worker
from app.settings.theme import Theme
from core.errors import HeteGenError
from core.events import Loaded

if TYPE_CHECKING:
    from core.server.server import Server

LOOK_MS = 500
ALL_ADDRESSES = "0.0.0.0"


class ServerController(QObject):
    """Starts and stops the local server in a worker thread.

    Signals: `changed(ServerState)`; `started` once it listens.
    """

    changed = Signal(object)
    started = Signal()

    def __init__(self, theme: Theme, worker: Worker, window: QWidget) -> None:
        super().__init__()
        self._theme, self._window = theme, window
        self._backend = ServerBackend(worker)
        self._server: Server | None = None
        # Starting imports the server and may ask the keyring: both take a moment.
        self._thread = TaskThread("server")
        self._thread.done.connect(self._on_done)
        self._thread.failed.connect(self._on_failed)
        self._look = QTimer(self, interval=LOOK_MS)
        self._look.timeout.connect(self._refresh)
        self.state = ServerState()

    @property
    def runs(self) -> bool:
        """Whether the server accepts requests."""
        return self.state.phase == "on"

    @Slot()
    def open(self) -> None:
        """Show the page."""
        # Imported late: most starts never open it.
        from app.views.server.server_dialog import ServerDialog

        dialog = ServerDialog(self._theme, self.state, self._window)
        dialog.start_wished.connect(self.start)
        dialog.stop_wished.connect(self.stop)
        dialog.key_wished.connect(self.change_key)
        self.changed.connect(dialog.show_state)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def set_model(self, model: Loaded | None) -> None:
        """Set the model that answers requests."""
        self._backend.set_model(model)

    @Slot(bool)
    def start(self, wide: bool) -> None:
        """Listen on this computer only, or on its network too if `wide`."""
        if self.state.phase == "off":
            self._set(ServerState("starting", wide=wide))
            self._thread.run(lambda stop, tell: self._keep(_start(self._backend, wide)))

    @Slot()
    def stop(self) -> None:
        """End all replies to clients and stop listening."""
        server = self._server
        if server is not None and self.state.phase == "on":
            self._set(replace(self.state, phase="stopping"))
            self._thread.run(lambda stop, tell: self._end(server))

    @Slot()
    def change_key(self) -> None:
        """Create another key and restart the running server with it."""
        server = self._server
        if server is not None and self.state.phase == "on":
            self._set(ServerState("starting", wide=self.state.wide))
            self._thread.run(lambda stop, tell: self._keep(_with_new_key(self._backend, server, self._end)))

    def close(self) -> None:
        """Stop and join; called when the window closes."""
        self._look.stop()
        self._thread.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _keep(self, server: Server) -> Server:
        """Keep a running server; called in the thread, as the window may be closed before it hears of it."""
        self._server = server
        return server

    def _end(self, server: Server) -> None:
        server.close()
        self._server = None

    @Slot(int, object)
    def _on_done(self, ticket: int, server: Server | None) -> None:
        if server is None:
            self._look.stop()
            self._set(ServerState())
            return
        self._look.start()
        self._set(replace(self.state, phase="on", address=server.address, key=server.options.key))
        self.started.emit()

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        self._set(ServerState(error=error))

    @Slot()
    def _refresh(self) -> None:
        if self._server is not None:
            snapshot = self._server.activity.snapshot()
            if snapshot != self.state.activity or snapshot.live:
                self._set(replace(self.state, activity=snapshot))

    def _set(self, state: ServerState) -> None:
        self.state = state
        self.changed.emit(state)


def _with_new_key(backend: ServerBackend, server: Server, end: Callable[[Server], None]) -> Server:
    """Restart the server with a new key. Raises BadRequest."""
    from core.keyring import system_keyring
    from core.server.key import replace_key
    from core.server.server import Server

    options = replace(server.options, key=replace_key(system_keyring()), port=server.port)
    end(server)
    return Server(backend, options)


def _start(backend: ServerBackend, wide: bool) -> Server:
    """Start the server. Raises BadRequest."""
    from core.keyring import system_keyring
    from core.server.key import kept_key
    from core.server.options import ServerOptions
    from core.server.server import Server

    options = ServerOptions(ALL_ADDRESSES, key=kept_key(system_keyring())) if wide else ServerOptions()
    return Server(backend, options)
