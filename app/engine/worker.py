"""The thread that runs the engine: commands are queued, events come back as signals.

The first command creates the engine, and imports torch, inside the thread: the window is on the screen before torch is
read from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from app.engine.task_thread import TaskThread, Tell
from core.events import Event, LoadOptions, Request, Stop


class EngineLike(Protocol):
    """The part of `core.engine.Engine` that the worker uses."""

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Load a model and yield its events."""

    def check(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Find out whether a model can be loaded; called in another thread while a reply is under way."""

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        """Answer a request and yield its events."""

    def count(self, request: Request) -> Iterator[Event]:
        """Count the tokens of a request's prompt and yield the result."""

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        """Apply other memory limits, in bytes, and yield the events."""

    def close(self) -> None:
        """Free the model's memory."""


class Worker(TaskThread):
    """The engine as used by the window. Every command returns a ticket; `told` carries its core.events.Event.

    `checks`: the thread of `check`, with signals and tickets of its own.
    """

    def __init__(self, make_engine: Callable[[], EngineLike]) -> None:
        super().__init__("engine", runs_stopped=True, at_end=self._give_back)
        self._make_engine = make_engine
        self._engine: EngineLike | None = None  # created, used and closed in the thread only, apart from checks
        self.checks = TaskThread("model check")

    def load(self, source: str, options: LoadOptions) -> int:
        """Load another model, stopping whatever runs."""
        self.stop_all()
        return self._send(lambda engine, stop: engine.load(source, options, stop))

    def check(self, source: str, options: LoadOptions) -> int:
        """Find out whether a model can be loaded, beside the reply that runs; return a ticket of `checks`."""
        engine = self._engine
        assert engine is not None, "a reply runs"

        def work(stop: Stop, tell: Tell) -> None:
            for event in engine.check(source, options, stop):
                if stop():
                    break
                tell(event)

        return self.checks.run(work)

    def chat(self, request: Request) -> int:
        """Answer a request, after the queued commands."""
        return self._send(lambda engine, stop: engine.chat(request, stop))

    def count(self, request: Request) -> int:
        """Count the tokens of a request's prompt, after the queued commands."""
        return self._send(lambda engine, stop: engine.count(request))

    def replan(self, vram: int | None, ram: int | None) -> int:
        """Apply other memory limits, in bytes, to the loaded model, after the queued commands."""
        return self._send(lambda engine, stop: engine.replan(vram, ram))

    def serve(self, work: Callable[[EngineLike, Stop], Iterator[Event]]) -> int:
        """Run a job of the local server's client, after the queued commands."""
        return self._send(work)

    def unload(self) -> int:
        """Unload the model, after the queued commands."""
        return self._send(_unload)

    def _send(self, command: Callable[[EngineLike, Stop], Iterator[Event]]) -> int:
        def work(stop: Stop, tell: Tell) -> None:
            if self._engine is None:
                self._engine = self._make_engine()
            for event in command(self._engine, stop):
                tell(event)

        return self.run(work)

    def leave(self) -> None:
        self.checks.leave()
        super().leave()

    def close(self) -> None:
        self.checks.close()
        super().close()

    def _give_back(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _unload(engine: EngineLike, stop: Stop) -> Iterator[Event]:
    engine.close()
    return iter(())
