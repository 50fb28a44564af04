"""The thread that runs the engine: commands are queued down, events come up as signals.

The engine (and with it torch) is made inside the thread by the first command, so the window is on the screen before
torch is read from the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from app.engine.task_thread import TaskThread, Tell
from core.events import Event, LoadOptions, Request, Stop


class EngineLike(Protocol):
    """What the worker needs of `core.engine.Engine`."""

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Make a model ready, as events."""

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        """Answer a request, as events."""

    def count(self, request: Request) -> Iterator[Event]:
        """Count the tokens of a request's prompt, as an event."""

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        """Keep the model to other limits of memory in bytes, as events."""

    def close(self) -> None:
        """Give the model's memory back."""


class Worker(TaskThread):
    """The engine as the window sees it. Every command returns a ticket; `told` carries its core.events.Event."""

    def __init__(self, make_engine: Callable[[], EngineLike]) -> None:
        super().__init__("engine", runs_stopped=True, at_end=self._give_back)
        self._make_engine = make_engine
        self._engine: EngineLike | None = None  # made, used and closed in the thread alone

    def load(self, source: str, options: LoadOptions) -> int:
        """Makes another model ready; whatever runs is stopped first."""
        self.stop_all()
        return self._send(lambda engine, stop: engine.load(source, options, stop))

    def chat(self, request: Request) -> int:
        """Answers a request after what is already queued."""
        return self._send(lambda engine, stop: engine.chat(request, stop))

    def count(self, request: Request) -> int:
        """Counts the tokens of a request's prompt, after what is already queued."""
        return self._send(lambda engine, stop: engine.count(request))

    def replan(self, vram: int | None, ram: int | None) -> int:
        """Keeps the loaded model to other limits of memory (bytes), after what is already queued."""
        return self._send(lambda engine, stop: engine.replan(vram, ram))

    def serve(self, work: Callable[[EngineLike, Stop], Iterator[Event]]) -> int:
        """Gives a client of the local server its turn, after what is already queued."""
        return self._send(work)

    def unload(self) -> int:
        """Gives the model up after what is queued."""
        return self._send(_unload)

    def _send(self, command: Callable[[EngineLike, Stop], Iterator[Event]]) -> int:
        def work(stop: Stop, tell: Tell) -> None:
            if self._engine is None:
                self._engine = self._make_engine()
            for event in command(self._engine, stop):
                tell(event)

        return self.run(work)

    def _give_back(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _unload(engine: EngineLike, stop: Stop) -> Iterator[Event]:
    engine.close()
    return iter(())
