"""The window's engine as the local server sees it: clients of the server take turns with the chat."""

from __future__ import annotations

from collections.abc import Iterator

from PySide6.QtCore import QObject, Qt, Signal, Slot

from app.engine.worker import EngineLike, Worker
from core.events import Event, Loaded, Stop
from core.server.backend import Job
from core.server.engine_thread import models_on_disk
from core.server.fair_queue import FairQueue


class ServerBackend(QObject):
    """A core.server Backend. At most one job of a client waits in the worker's own queue at a time, so that a question
    in the window waits for one of them at most."""

    _wanted = Signal()

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self._model: Loaded | None = None
        self._queue: FairQueue[Job] = FairQueue()
        self._ticket = 0
        self._wanted.connect(self._next, Qt.ConnectionType.QueuedConnection)
        worker.done.connect(self._on_done)
        worker.failed.connect(self._on_done)

    def set_model(self, model: Loaded | None) -> None:
        """Take note of which model answers now."""
        self._model = model

    def model(self) -> Loaded | None:
        return self._model

    def installed(self) -> list[str]:
        return models_on_disk()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn; called in the server's thread."""
        self._queue.put(job)
        self._wanted.emit()

    @Slot()
    def _next(self) -> None:
        if not self._ticket and len(self._queue):
            self._ticket = self._worker.serve(self._run)

    @Slot(int, object)
    def _on_done(self, ticket: int, result: object) -> None:
        if ticket == self._ticket:
            self._ticket = 0
            self._next()

    def _run(self, engine: EngineLike, stop: Stop) -> Iterator[Event]:
        """Carry out whichever job is next; in the engine's thread. Its events go to its client alone."""
        if (job := self._queue.take(wait=False)) is not None:
            job.run(engine, stop)
        return iter(())
