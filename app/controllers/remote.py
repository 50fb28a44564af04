"""Remote models: addresses are tested in a worker thread, and a remote model is loaded like a local one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.engine.remote_state import RemoteState
from app.engine.task_thread import TaskThread, Tell
from app.settings.theme import Theme
from core.errors import HeteGenError
from core.events import Stop
from core.keyring import system_keyring
from core.remote.check import Outcome, check
from core.remote.endpoint import Endpoint, base_url
from core.remote.keys import keep_key, key_of
from core.remote.saved import SavedEndpoint, put, read_saved, write_saved


class RemoteController(QObject):
    """Tests, saves and connects remote servers.

    Signals: `changed(RemoteState)`; `chosen(source)` when a remote model is to answer.
    """

    changed = Signal(object)
    chosen = Signal(str)

    def __init__(self, theme: Theme, path: Path, window: QWidget) -> None:
        """`path`: the file of saved servers."""
        super().__init__()
        self._theme, self._path, self._window = theme, path, window
        # Resolving a name and connecting may take seconds.
        self._thread = TaskThread("remote")
        self._thread.told.connect(self._on_told)
        self._thread.done.connect(self._on_done)
        self._thread.failed.connect(self._on_failed)
        # A thread of its own: storing a key must not wait for a test, nor be cancelled with it or with the window.
        self._keys = TaskThread("keys of remote models", runs_stopped=True)
        self._keys.done.connect(self._on_kept)
        self._ticket = 0
        self.state = RemoteState()

    @Slot()
    def open(self) -> None:
        """Show the page."""
        # Imported late: most starts never open it.
        from app.views.models.remote_dialog import RemoteDialog

        self.state = replace(self.state, saved=read_saved(self._path))
        dialog = RemoteDialog(self._theme, self.state, self._window)
        dialog.test_wished.connect(self.test)
        dialog.connect_wished.connect(self.connect_to)
        dialog.save_wished.connect(self.save)
        dialog.remove_wished.connect(self.remove)
        self.changed.connect(dialog.show_state)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    @Slot(str, str)
    def test(self, address: str, key: str) -> None:
        """Test the server step by step. An empty key means the stored one."""
        self._thread.stop_all()
        self._set(replace(self.state, address=address, busy=True, outcomes=()))
        self._ticket = self._thread.run(lambda stop, tell: _test(address, key, stop, tell))

    @Slot(object, str, str)
    def save(self, server: SavedEndpoint, key: str, former: str) -> None:
        """Save a server in place of the one named `former`. A key, if given, goes to the keyring."""
        try:
            url = server.url
        except HeteGenError as error:
            self._set(replace(self.state, address=server.address, outcomes=(Outcome("address", error),)))
            return
        self._replace(put(self.state.saved, server, former))
        if key:
            self._keys.run(lambda stop, tell: keep_key(system_keyring(), url, key))

    @Slot(str)
    def remove(self, name: str) -> None:
        """Delete a server, and its key unless another server has the same address."""
        self._replace(tuple(one for one in self.state.saved if one.name != name))

    @Slot(object, str, str)
    def connect_to(self, server: SavedEndpoint, key: str, former: str) -> None:
        """Save a server and load its model."""
        self.save(server, key, former)
        if server in self.state.saved:
            source = Endpoint(server.url, server.model).source
            # Queued behind the key: loading the model looks it up.
            self._keys.run(lambda stop, tell: source)

    def _replace(self, saved: tuple[SavedEndpoint, ...]) -> None:
        """Keep these servers, and delete the keys of addresses that none of them has any more."""
        former = {one.url for one in self.state.saved}
        self._keep(saved)
        for url in former - {one.url for one in self.state.saved}:
            self._forget(url)

    def _forget(self, url: str) -> None:
        self._keys.run(lambda stop, tell: keep_key(system_keyring(), url, ""))

    def _keep(self, saved: tuple[SavedEndpoint, ...]) -> None:
        write_saved(self._path, saved)
        self._set(replace(self.state, saved=saved))

    def close(self) -> None:
        """Stop and join; called when the window closes."""
        self._thread.close()
        self._keys.close()

    @Slot(int, object)
    def _on_kept(self, ticket: int, result: object) -> None:
        if isinstance(result, str):
            self.chosen.emit(result)

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
