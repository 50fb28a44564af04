"""The one thread that runs the engine: commands are queued down, events come up as signals.

The only module that knows both Qt and the engine. The engine (and with it torch) is made inside the thread by the
first command, so the window is on the screen before torch is read from the disk.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from threading import Event as Flag
from typing import Protocol

from PySide6.QtCore import QObject, Qt, QThread, Signal, Slot

from core.events import Event, LoadOptions, Request, Stop

log = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What the worker needs of `core.engine.Engine`."""

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]: ...
    def chat(self, request: Request, stop: Stop) -> Iterator[Event]: ...
    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]: ...
    def close(self) -> None: ...


class Command:
    """One piece of work for the engine, and the flag that ends it early, whether it has begun or not."""

    def __init__(self, ticket: int, run: Callable[[EngineLike, Stop], Iterator[Event]]) -> None:
        self.ticket = ticket
        self.run = run
        self.stopped = Flag()


class _Hand(QObject):
    """Lives in the thread and carries out one command after the other."""

    told = Signal(int, object)
    crashed = Signal(int, str)
    done = Signal(int)

    def __init__(self, make_engine: Callable[[], EngineLike]) -> None:
        super().__init__()
        self._make_engine = make_engine
        self._engine: EngineLike | None = None

    @Slot(object)
    def carry_out(self, command: Command) -> None:
        try:
            if self._engine is None:
                self._engine = self._make_engine()
            for event in command.run(self._engine, command.stopped.is_set):
                self.told.emit(command.ticket, event)
        except Exception:  # noqa: BLE001  A defect must reach the window and the log, or the thread would die unseen.
            text = traceback.format_exc()
            log.error("The engine failed unexpectedly:\n%s", text)
            self.crashed.emit(command.ticket, text)
        finally:
            self.done.emit(command.ticket)

    @Slot()
    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class Worker(QObject):
    """The engine as the window sees it. Every command returns a ticket that its events carry.

    Signals: `told(ticket, core.events.Event)`; `crashed(ticket, traceback)` for a defect; `done(ticket)` after the
    last event of a command, also of one that was stopped before it began.
    """

    told = Signal(int, object)
    crashed = Signal(int, str)
    done = Signal(int)
    _order = Signal(object)
    _close = Signal()

    def __init__(self, make_engine: Callable[[], EngineLike]) -> None:
        super().__init__()
        self._tickets = count(1)
        self._waiting: dict[int, Command] = {}
        self._thread = QThread()
        self._thread.setObjectName("engine")
        self._hand = _Hand(make_engine)
        self._hand.moveToThread(self._thread)
        self._order.connect(self._hand.carry_out)
        self._close.connect(self._hand.close, Qt.ConnectionType.BlockingQueuedConnection)
        self._hand.told.connect(self.told)
        self._hand.crashed.connect(self.crashed)
        self._hand.done.connect(self._on_done)
        self._thread.start(QThread.Priority.LowPriority)

    @property
    def busy(self) -> bool:
        """True while a command is running or waiting."""
        return bool(self._waiting)

    def load(self, source: str, options: LoadOptions) -> int:
        """Makes another model ready; whatever runs is stopped first."""
        self.stop()
        return self._send(lambda engine, stop: engine.load(source, options, stop))

    def chat(self, request: Request) -> int:
        """Answers a request after what is already queued."""
        return self._send(lambda engine, stop: engine.chat(request, stop))

    def replan(self, vram: int | None, ram: int | None) -> int:
        """Keeps the loaded model to other limits of memory (bytes), after what is already queued."""
        return self._send(lambda engine, stop: engine.replan(vram, ram))

    def unload(self) -> int:
        """Gives the model up after what is queued."""
        return self._send(_unload)

    def stop(self) -> None:
        """Asks everything that runs or waits to end; returns at once."""
        for command in self._waiting.values():
            command.stopped.set()

    def close(self) -> None:
        """Stops, frees the model and joins the thread. Returns when the thread has ended."""
        if not self._thread.isRunning():
            return
        self.stop()
        self._close.emit()
        self._thread.quit()
        self._thread.wait()

    def _send(self, run: Callable[[EngineLike, Stop], Iterator[Event]]) -> int:
        command = Command(next(self._tickets), run)
        self._waiting[command.ticket] = command
        self._order.emit(command)
        return command.ticket

    @Slot(int)
    def _on_done(self, ticket: int) -> None:
        self._waiting.pop(ticket, None)
        self.done.emit(ticket)


def _unload(engine: EngineLike, stop: Stop) -> Iterator[Event]:
    engine.close()
    return iter(())
