"""What the server needs of the engine: the loaded model, the installed models, and a way to run jobs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from threading import Event as Flag
from typing import Protocol

from core.errors import HeteGenError
from core.events import Event, Failed, Loaded, Request, Stop, never

log = logging.getLogger(__name__)

DEFECT = HeteGenError("Something went wrong inside.", "This is a defect of the program; the log has the details.")


class EngineLike(Protocol):
    """The part of `core.engine.Engine` that answers requests."""

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        """Answer a request, as events."""

    def count(self, request: Request) -> Iterator[Event]:
        """Count the tokens of a request's prompt, as an event."""


Work = Callable[[EngineLike, Stop], Iterator[Event]]


class Job:
    """A client's piece of work. `tell` receives every event, then None, in the engine's thread."""

    def __init__(self, client: str, work: Work, tell: Callable[[Event | None], None]) -> None:
        self.client = client
        self._work = work
        self._tell = tell
        self._stopped = Flag()

    def stop(self) -> None:
        """End the job at the next token, layer or step, or before it begins. Thread-safe."""
        self._stopped.set()

    def run(self, engine: EngineLike, stop: Stop = never) -> None:
        """Run the job in the engine's thread. `stop` is a further way to end it."""
        try:
            if not self._stopped.is_set():
                for event in self._work(engine, lambda: self._stopped.is_set() or stop()):
                    self._tell(event)
        except Exception:  # noqa: BLE001  A defect must reach the client and the log, or the thread would die unseen.
            log.error("The engine failed unexpectedly:\n%s", traceback.format_exc())
            self._tell(Failed(DEFECT))
        finally:
            self._tell(None)

    def drop(self) -> None:
        """End a job that never began."""
        self._tell(None)


class Backend(Protocol):
    """The engine as the server sees it; called from the server's thread."""

    def model(self) -> Loaded | None:
        """Return the model that answers now; None if none is loaded and none can be loaded again at once."""
        ...

    def name(self) -> str:
        """Return the id of the model that answers, or is being loaded; "" = none."""
        ...

    def loader(self, name: str) -> Work | None:
        """Return what loads the model of this id unless it is loaded, before a request for it is answered; None if
        requests cannot choose the model."""
        ...

    def installed(self) -> list[str]:
        """Return the names of complete models on this disk."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a job."""
        ...


def model_id(loaded: Loaded) -> str:
    """Return a loaded model's id for clients: a Hub id unchanged, other names without spaces."""
    return "-".join(loaded.name.split())
