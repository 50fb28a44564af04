"""Finds out whether a model on another computer can be used, beside the engine: a reply there does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.engine.engine_import import make_remote_engine
from app.engine.task_thread import TaskThread, Tell
from core.events import Loading, LoadOptions, Stop
from core.remote.engine import RemoteEngine


class RemoteCheck(TaskThread):
    """Checks one model after another. `told` carries the events of `RemoteEngine.check`, after a first Loading."""

    def __init__(self, make: Callable[[], RemoteEngine] = make_remote_engine) -> None:
        super().__init__("remote check")
        self._make = make

    def check(self, source: str) -> int:
        """Check a model; return the ticket."""
        return self.run(partial(_check, self._make, source))


def _check(make: Callable[[], RemoteEngine], source: str, stop: Stop, tell: Tell) -> None:
    tell(Loading("start", 0.0))
    for event in make().check(source, LoadOptions(), stop):
        tell(event)
