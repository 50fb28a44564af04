"""A worker thread for one kind of slow work. Jobs run one after another; signals carry their news and results."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable
from itertools import count
from threading import Event as Flag

from PySide6.QtCore import QObject, Qt, QThread, QTimer, Signal, Slot

from core.errors import HeteGenError
from core.events import Stop
from core.hub.retry import Stopped

log = logging.getLogger(__name__)

NEWS_MS = 25
"""Least time between two deliveries of news: waking the main thread for every token would make the engine's thread wait
for the interpreter's lock as often."""

Tell = Callable[[object], None]
Work = Callable[[Stop, Tell], object]
"""Takes `stop`, to be polled, and `tell`, for news; returns a result, or raises HeteGenError or Stopped."""


class Defect(HeteGenError):
    """An unforeseen failure of a job, i.e. a bug. `details`: the traceback."""

    def __init__(self, details: str) -> None:
        super().__init__("Something went wrong inside.", "This is a defect of the program; the log has the details.")
        self.details = details


class _Job:
    def __init__(self, ticket: int, work: Work) -> None:
        self.ticket = ticket
        self.work = work
        self.stopped = Flag()


class _Runner(QObject):
    """Lives in the thread and runs its jobs."""

    has_news = Signal()
    done = Signal(int, object)
    failed = Signal(int, object)

    def __init__(self, runs_stopped: bool, at_end: Callable[[], None]) -> None:
        super().__init__()
        self.news: deque[tuple[int, object]] = deque()
        """Tickets and news that wait for delivery; the thread that owns the TaskThread takes them."""
        self._runs_stopped = runs_stopped
        self._at_end = at_end

    @Slot(object)
    def run(self, job: _Job) -> None:
        try:
            result = None
            if self._runs_stopped or not job.stopped.is_set():
                result = job.work(job.stopped.is_set, lambda news: self.tell(job.ticket, news))
            self.done.emit(job.ticket, result)
        except Stopped:
            self.done.emit(job.ticket, None)
        except HeteGenError as error:
            self.failed.emit(job.ticket, error)
        except Exception:  # noqa: BLE001  A bug must reach the window and the log, or the thread would die unseen.
            defect = Defect(traceback.format_exc())
            log.error("A job of the thread %s failed unexpectedly:\n%s", self.thread().objectName(), defect.details)
            self.failed.emit(job.ticket, defect)

    def tell(self, ticket: int, news: object) -> None:
        self.news.append((ticket, news))
        if len(self.news) == 1:  # counted after appending: the other thread may have taken everything just before
            self.has_news.emit()

    @Slot()
    def leave(self) -> None:
        self.thread().quit()

    @Slot()
    def end(self) -> None:
        self._at_end()


class TaskThread(QObject):
    """Runs jobs in a worker thread, started with the first job.

    Signals carry the ticket returned by `run`: `told(ticket, news)` during the job, then `done(ticket, result)` (None
    if stopped) or `failed(ticket, HeteGenError)`, a Defect for a bug. News within NEWS_MS of a delivery come together.
    """

    told = Signal(int, object)
    done = Signal(int, object)
    failed = Signal(int, object)
    _order = Signal(object)
    _leave = Signal()

    def __init__(self, name: str, runs_stopped: bool = False, at_end: Callable[[], None] = lambda: None) -> None:
        """`runs_stopped`: run stopped jobs all the same and forward their news; they report themselves how they end.

        `at_end` is called in the thread after its last job.
        """
        super().__init__()
        self._hears_stopped = runs_stopped
        self._tickets = count(1)
        self._closed = False
        self._waiting: dict[int, _Job] = {}
        self._thread = QThread()
        self._thread.setObjectName(name)
        self._runner = _Runner(runs_stopped, at_end)
        self._runner.moveToThread(self._thread)
        self._order.connect(self._runner.run)
        self._leave.connect(self._runner.leave)
        self._thread.finished.connect(self._runner.end, Qt.ConnectionType.DirectConnection)
        self._pause = QTimer(self, singleShot=True, interval=NEWS_MS, timerType=Qt.TimerType.PreciseTimer)
        self._pause.timeout.connect(self._on_news)
        self._runner.has_news.connect(self._on_news)
        self._runner.done.connect(self._on_done)
        self._runner.failed.connect(self._on_failed)

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        return bool(self._waiting)

    def run(self, work: Work) -> int:
        """Queue a job and return its ticket. A closed thread ignores it."""
        job = _Job(next(self._tickets), work)
        if self._closed:
            return job.ticket
        if not self._thread.isRunning():
            self._thread.start(QThread.Priority.LowPriority)
        self._waiting[job.ticket] = job
        self._order.emit(job)
        return job.ticket

    def stop(self, ticket: int) -> None:
        """Ask one job to stop; no effect if it has ended."""
        if ticket in self._waiting:
            self._waiting[ticket].stopped.set()

    def stop_all(self) -> None:
        """Ask all running and waiting jobs to stop."""
        for job in self._waiting.values():
            job.stopped.set()

    def leave(self) -> None:
        """Stop without waiting; `close` joins later."""
        self._closed = True
        self.stop_all()
        if self._hears_stopped:
            self._leave.emit()  # behind the waiting jobs: each reports how it ended
        else:
            self._thread.quit()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.isRunning()

    def close(self) -> None:
        """Stop and join; no signal is emitted from then on."""
        self.leave()
        self._thread.wait()
        self._pause.stop()
        self._runner.news.clear()
        self._waiting.clear()

    @Slot()
    def _on_news(self) -> None:
        if self._runner.news and not self._pause.isActive():
            self._pause.start()
            self._deliver()

    def _deliver(self) -> None:
        waiting = self._runner.news
        while waiting:
            ticket, news = waiting.popleft()
            job = self._waiting.get(ticket)
            # Drop news of a job that was asked to stop.
            if job is not None and (self._hears_stopped or not job.stopped.is_set()):
                self.told.emit(ticket, news)

    @Slot(int, object)
    def _on_done(self, ticket: int, result: object) -> None:
        if self._has_ended(ticket):
            self.done.emit(ticket, result)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: object) -> None:
        if self._has_ended(ticket):
            self.failed.emit(ticket, error)

    def _has_ended(self, ticket: int) -> bool:
        """Deliver a job's last news and forget it. False if this object was closed, and its listeners may be gone."""
        self._deliver()
        return self._waiting.pop(ticket, None) is not None
