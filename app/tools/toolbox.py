"""The window's tools: configured servers, their offers, permissions, and calls answered by signals.

Whatever may block (keyring, servers) runs in worker threads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt, Signal, Slot

from app.engine.task_thread import TaskThread
from app.tools.state import ToolsState
from core.errors import BadRequest, HeteGenError
from core.events import Tool, ToolCall
from core.keyring import Keyring
from core.sentence import sentence
from core.tools.book import Book, Permission, read_book, write_book
from core.tools.names import Offer, offers
from core.tools.results import LONGEST
from core.tools.server import ServerStatus, ToolResult, ToolServer

if TYPE_CHECKING:
    from core.tools.host import ToolHost

log = logging.getLogger(__name__)

Change = Callable[[Book], Book]


class Toolbox(QObject):
    """Keeps the tool servers and calls their tools.

    Signals: `changed(ToolsState)`; `answered(call id, ToolResult)` once for every call that was not cancelled.
    """

    changed = Signal(object)
    answered = Signal(str, object)
    _told = Signal(object)
    _ended = Signal(str, object)

    def __init__(self, path: Path, keyring: Callable[[], Keyring], logs: Path | None = None) -> None:
        """`path`: file of the book; `logs`: folder of the servers' logs."""
        super().__init__()
        self.state = ToolsState()
        self._path, self._keyring, self._logs = path, keyring, logs
        self._calls: dict[str, Future[ToolResult]] = {}
        self._told.connect(self._on_told, Qt.ConnectionType.QueuedConnection)
        self._ended.connect(self._on_ended, Qt.ConnectionType.QueuedConnection)
        # What was changed last is kept, too: its job runs even if the window is closed meanwhile.
        self._thread = TaskThread("tool book", runs_stopped=True)
        self._thread.done.connect(self._on_done)
        self._kept = Book()  # what the file holds; belongs to the thread
        self._reading = 0
        self._changes: list[Change] = []
        """The changes made while the book is read, which may take until the user has unlocked the keyring."""

    def open(self) -> None:
        """Read the book and start its servers."""
        if self._path.exists():
            self._reading = self._thread.run(lambda stop, tell: self._read())

    def close(self) -> None:
        """Cancel calls, end servers and join threads."""
        for id in list(self._calls):
            self.cancel(id)
        self._thread.close()
        if "_host" in vars(self):
            self._host.close()

    @cached_property
    def _host(self) -> ToolHost:
        # Imported late, with asyncio: most starts have no tool server.
        from core.tools.host import ToolHost

        return ToolHost(self._told.emit, self._logs)

    # Servers

    def put(self, server: ToolServer, former: str = "") -> None:
        """Save a server in place of the one named `former`."""
        self._change(lambda book: book.put(server, former))

    def remove(self, name: str) -> None:
        """Remove a server with its keys and permissions."""
        self._change(lambda book: book.without(name))

    def switch(self, name: str, *, on: bool) -> None:
        """Start or end a server."""
        self.put(replace(self.server(name), on=on))

    def restart(self, name: str) -> None:
        """Restart a server, to see whether it works."""
        if self.server(name).on:
            self._host.restart(self.server(name))
        else:
            self.switch(name, on=True)

    def server(self, name: str) -> ToolServer:
        """Return the server of this name. Raises StopIteration if there is none."""
        return next(server for server in self.state.book.servers if server.name == name)

    # Calls

    def offered(self) -> tuple[Tool, ...]:
        """List the tools that models may call now."""
        allowed = self.state.book.permission
        return tuple(offer.tool for offer in self._offers() if allowed(offer.server, offer.name) != "never")

    def offer(self, name: str) -> Offer:
        """Return the tool that models know by this name. Raises BadRequest."""
        found = next((offer for offer in self._offers() if offer.tool.name == name), None)
        if found is None:
            names = ", ".join(tool.name for tool in self.offered())
            raise BadRequest(sentence("There is no tool named {}.", name), sentence("There are: {}.", names))
        return found

    def permission(self, name: str) -> Permission:
        """Return whether a tool may be called without asking. Raises BadRequest for an unknown name."""
        offer = self.offer(name)
        return self.state.book.permission(offer.server, offer.name)

    def permit(self, server: str, tool: str, permission: Permission) -> None:
        """Save whether a tool may be called without asking."""
        self._change(lambda book: book.permit(server, tool, permission))

    def call(self, call: ToolCall, longest: int = LONGEST) -> None:
        """Call a tool; `answered` reports the result. Raises BadRequest if it cannot be called."""
        offer, arguments = self.offer(call.name), arguments_of(call)
        future = self._host.call(offer.server, offer.name, arguments, longest)
        self._calls[call.id] = future
        future.add_done_callback(lambda done: self._ended.emit(call.id, done))

    def cancel(self, id: str) -> None:
        """Cancel a call; it is not answered any more."""
        if (future := self._calls.pop(id, None)) is not None:
            future.cancel()

    def _offers(self) -> tuple[Offer, ...]:
        return offers({status.name: status.tools for status in self.state.statuses if status.phase == "on"})

    def _change(self, change: Change) -> None:
        if self._reading:
            self._changes.append(change)
        self._use(change(self.state.book))
        self._thread.run(lambda stop, tell: self._write(change))

    def _use(self, book: Book) -> None:
        former = self.state.book
        self._set(replace(self.state, book=book))
        if book.servers != former.servers:
            self._host.use(book.servers)

    def _read(self) -> Book:
        self._kept = read_book(self._path, self._keyring())
        return self._kept

    def _write(self, change: Change) -> bool:
        former, self._kept = self._kept, change(self._kept)
        return write_book(self._path, self._kept, former, self._keyring())

    @Slot(int, object)
    def _on_done(self, ticket: int, result: object) -> None:
        if isinstance(result, Book):
            self._reading = 0
            self._use(reduce(lambda book, change: change(book), self._changes, result))
            self._changes.clear()
        elif result is False:
            self._set(replace(self.state, keyless=True))

    @Slot(object)
    def _on_told(self, statuses: tuple[ServerStatus, ...]) -> None:
        self._set(replace(self.state, statuses=statuses))

    @Slot(str, object)
    def _on_ended(self, id: str, future: Future[ToolResult]) -> None:
        if self._calls.get(id) is not future:
            return
        del self._calls[id]
        try:
            result = future.result()
        except CancelledError:
            result = ToolResult("The call was given up.", failed=True)
        except HeteGenError as error:
            result = ToolResult(str(error), failed=True)
        self.answered.emit(id, result)

    def _set(self, state: ToolsState) -> None:
        self.state = state
        self.changed.emit(state)


def arguments_of(call: ToolCall) -> dict[str, object]:
    """Parse the arguments that a model wrote. Raises BadRequest."""
    try:
        found = json.loads(call.arguments.strip() or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest("The arguments are not a JSON object.", sentence("They are: {}", call.arguments[:200]))
    return found
