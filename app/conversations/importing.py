"""Imports files of conversations beside the window: read in a thread, and stored a few at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from app.conversations.imports.reader import Imported, read_json
from app.conversations.saved_conversation import SavedConversation
from app.engine.task_thread import TaskThread, Tell
from core.errors import HeteGenError
from core.events import Stop

SLICE_S = 0.02
"""How long conversations are stored at a stretch; the window answers in between."""


class Importing(QObject):
    """Imports one file after another.

    Signals: `began(Path)`; then `ended(Path, Imported)` once its conversations are stored, or `failed(Path,
    HeteGenError)`.
    """

    began = Signal(object)
    ended = Signal(object, object)
    failed = Signal(object, object)

    def __init__(self, store: Callable[[SavedConversation], None]) -> None:
        super().__init__()
        self._store = store
        self._files: dict[int, Path] = {}
        self._left: deque[tuple[Path, Imported, Iterator[SavedConversation]]] = deque()
        """What was read, and the conversations that are still to be stored."""
        self._tasks = TaskThread("import")
        self._tasks.done.connect(self._on_read)
        self._tasks.failed.connect(self._on_failed)
        self._storing = QTimer(self, interval=0)
        self._storing.timeout.connect(self._on_time)

    def read(self, path: Path) -> None:
        """Import all conversations of a file."""
        self._files[self._tasks.run(partial(_read, path))] = path
        self.began.emit(path)

    def close(self) -> None:
        """Store what was read, and join the thread."""
        self._tasks.close()
        self._storing.stop()
        for _, _, left in self._left:
            for saved in left:
                self._store(saved)
        self._left.clear()

    @Slot(int, object)
    def _on_read(self, ticket: int, imported: Imported | None) -> None:
        path = self._files.pop(ticket)
        if imported is not None:
            self._left.append((path, imported, iter(imported)))
            self._storing.start()

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        self.failed.emit(self._files.pop(ticket), error)

    @Slot()
    def _on_time(self) -> None:
        end = time.monotonic() + SLICE_S
        path, imported, left = self._left[0]
        for saved in left:
            self._store(saved)
            if time.monotonic() > end:
                return
        self._left.popleft()
        if not self._left:
            self._storing.stop()
        self.ended.emit(path, imported)


def _read(path: Path, stop: Stop, tell: Tell) -> Imported:
    return read_json(path)
