"""The window's engine as a backend of the local server, shared between its clients and the chat."""

from __future__ import annotations

from collections.abc import Iterator

from PySide6.QtCore import QObject, Qt, Signal, Slot

from app.engine.worker import EngineLike, Worker
from core.events import Event, Loaded, Stop
from core.server.backend import Job, Work, model_id
from core.server.engine_thread import models_on_disk
from core.server.fair_queue import FairQueue


class ServerBackend(QObject):
    """A core.server Backend.

    At most one client's job waits in the worker's queue at a time, so that a question in the window waits for at most
    one.
    """

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
        """Set the model that answers requests."""
        self._model = model

    def model(self) -> Loaded | None:
        return self._model

    def name(self) -> str:
        return "" if self._model is None else model_id(self._model)

    def loader(self, name: str) -> Work | None:
        """Return None: the model in the window is the user's choice."""
        return None

    def installed(self) -> list[str]:
        return models_on_disk()

    def submit(self, job: Job) -> None:
        """Queue a job; called in the server's thread."""
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
        """Run the next job, in the engine's thread. Its events go to its client only."""
        if (job := self._queue.take(wait=False)) is not None:
            job.run(engine, stop)
        return iter(())
