"""Runs the engine in a thread of its own, for a server without a window."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

from core.events import Loaded
from core.hub.installed import default_cache, installed
from core.server.backend import EngineLike, Job, Work
from core.server.fair_queue import FairQueue
from core.server.served import OneModel


class EngineThread:
    """A Backend for one engine that has already loaded a model. `served`: which others requests may have loaded."""

    def __init__(self, engine: EngineLike, served: OneModel, on_disk: Callable[[], list[str]] | None = None) -> None:
        self._engine = engine
        self._served = served
        self._on_disk = on_disk or models_on_disk
        self._queue: FairQueue[Job] = FairQueue()
        self._running: Job | None = None
        self._thread = Thread(target=self._run, name="engine")
        self._thread.start()

    def model(self) -> Loaded | None:
        return self._served.model

    def name(self) -> str:
        return self._served.name

    def loader(self, name: str) -> Work | None:
        return self._served.loader(name)

    def installed(self) -> list[str]:
        return [*dict.fromkeys((self._served.first, *self._on_disk()))]

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def close(self) -> None:
        """End running and waiting jobs, and join the thread."""
        for job in self._queue.close():
            job.drop()
        if (running := self._running) is not None:
            running.stop()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.take()) is not None:
            self._running = job
            job.run(self._engine)
            self._running = None


def models_on_disk() -> list[str]:
    """Return the ids of the complete models in the Hugging Face cache."""
    return [model.id for model in installed(default_cache()) if model.complete]
