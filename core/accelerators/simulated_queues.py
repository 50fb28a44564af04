"""Streams and events of the simulated device: queues whose work is deferred and timed by a clock.

A queue's work is done piece by piece by any thread that waits for a part of it; copies also by a thread of the link.
Launched work is done by the thread that launched it, or by a thread of a device with cores of its own.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.accelerators.base import DeviceEvent, Stream, device_lost
from core.errors import DeviceLost
from core.kernels.native_copy import copy_past_caches
from core.spec import COPY_PIECE
from core.units import KIB

# Marks data in flight: all bits set is NaN in every floating-point type.
POISON, POISON_BYTES = 0xFF, 256
# Copies up to this size are done by the waiting thread: waking the link's thread would take longer.
SMALL_COPY = 256 * KIB
# Sleeping is not more precise than this. The clocks accumulate the error, so that average rates are right.
SHORTEST_SLEEP = 50e-6
LOOK_AGAIN_S = 0.1


@dataclass
class Health:
    """Whether the device still answers; closing it also ends that."""

    name: str
    lost: bool = False
    failure: Exception | None = None

    def check(self) -> None:
        """Check the device. Raises DeviceLost, or the error of a device thread."""
        if self.failure is not None:
            raise self.failure
        if self.lost:
            raise device_lost(self.name)


def sleep_until(moment: float) -> None:
    """Sleep until about this time of `time.perf_counter`."""
    if (seconds := moment - time.perf_counter()) > SHORTEST_SLEEP:
        time.sleep(seconds)


class Wire:
    """One direction of the link, shared by all streams. `busy_s`: seconds it was busy in total."""

    def __init__(self, rate: float) -> None:
        self._seconds_per_byte = 1 / rate
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.busy_s = 0.0

    def take(self, nbytes: int, ready: float) -> float:
        """Reserve the link for a copy that can start at `ready`; return the time of its delivery."""
        seconds = nbytes * self._seconds_per_byte
        with self._lock:
            self._free_at = max(self._free_at, ready) + seconds
            self.busy_s += seconds
            return self._free_at


class Mark:
    """One recording of an event. It fires at time `at` of the simulated clock."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.done = threading.Event()
        self.at = 0.0

    def await_passively(self) -> None:
        """Wait without doing the queue's work. Raises DeviceLost."""
        while not self.done.wait(LOOK_AGAIN_S):
            self.queue.health.check()


Work = Callable[[], Mark | None]
"""A piece of work. Returns None when done, or the mark that must fire before it can be done."""


class Queue:
    """A queue of work in order. Reaching a mark means doing steps until it has fired."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._work: deque[Work] = deque()
        self._driving = threading.Lock()
        self._clock = 0.0

    def enqueue(self, work: Work) -> None:
        """Append work."""
        self._work.append(work)

    @property
    def is_empty(self) -> bool:
        """Return whether no work is left."""
        return not self._work

    def mark(self) -> Mark:
        """Return a new mark after all work enqueued so far."""
        mark = Mark(self)

        def fire() -> None:
            mark.at = self._clock
            mark.done.set()

        if self.is_empty:  # no work is pending, so nobody would come to fire it
            fire()
        else:
            self.enqueue(fire)
        return mark

    def reach(self, mark: Mark) -> None:
        """Do this queue's work up to the mark on the calling thread. Raises DeviceLost."""
        while not mark.done.is_set():
            self.step(mark)
        sleep_until(mark.at)

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, SimulatedEvent)
        if (mark := event.latest) is None:
            return

        def arrive() -> Mark | None:
            if not mark.done.is_set():
                return mark
            self._clock = max(self._clock, mark.at)
            return None

        self.enqueue(arrive)

    def synchronize(self) -> None:
        self.health.check()
        self.reach(self.mark())

    def step(self, until: Mark | None = None) -> None:
        """Do the next piece of work, or first reach the mark that it waits for. Raises DeviceLost.

        Does nothing if another thread has reached `until` meanwhile: the work after it could wait for what only this
        thread can do.
        """
        with self._driving:
            self.health.check()
            if until is not None and until.done.is_set():
                return
            blocker: Mark | None = None
            try:
                blocker = self._work[0]() if self._work else None
            finally:
                # Removed only after it is done, because an empty queue means that nothing is pending; but also after a
                # failure.
                if blocker is None and self._work:
                    self._work.popleft()
        # Without the lock: the thread that can make it fire may need earlier marks of this queue.
        if blocker is not None:
            blocker.queue.reach(blocker)


class Driver:
    """A thread that works through a queue whenever it is woken."""

    def __init__(self, queue: Queue, name: str, prepare: Callable[[], object] = lambda: None) -> None:
        """`prepare` is called first in the thread."""
        self._queue, self._prepare = queue, prepare
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the thread look for work."""
        self._wake.release()

    def stop(self) -> None:
        """Join the thread, after its device was lost."""
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        self._prepare()
        health = self._queue.health
        # Tensors made in inference mode, as in a forward pass, may only be written to in it.
        with torch.inference_mode():
            while not health.lost:
                self._wake.acquire()
                try:
                    while not self._queue.is_empty:
                        self._queue.step()
                except DeviceLost:
                    return
                except Exception as error:  # noqa: BLE001  raised again by whoever waits for the device
                    health.failure = error
                    return


class LaunchQueue(Queue):
    """Launched work: done on the launching thread when it is needed, not faster than the device's rate."""

    def __init__(self, health: Health, rate: float | None) -> None:
        super().__init__(health)
        self._seconds_per_byte = 1 / rate if rate else 0.0
        self._owner = 0

    def launch(self, work: Callable[[], object], nbytes: int) -> None:
        self.health.check()
        self._owner = threading.get_ident()
        ready = time.perf_counter()

        def compute() -> None:
            work()
            self._clock = max(self._clock, ready) + nbytes * self._seconds_per_byte

        self.enqueue(compute)

    def reach(self, mark: Mark) -> None:
        if threading.get_ident() != self._owner:
            mark.await_passively()
        super().reach(mark)

    def synchronize(self) -> None:
        self._owner = threading.get_ident()
        super().synchronize()

    def stop(self) -> None:
        """Stop the computing thread, if the device has one."""


class DeviceQueue(LaunchQueue):
    """Launched work of a device with its own cores: done at once by a thread of its own, beside the launching one."""

    def __init__(self, health: Health, rate: float | None, cores: int) -> None:
        super().__init__(health, rate)
        self._driver = Driver(self, "simulated device", lambda: torch.set_num_threads(cores))

    def enqueue(self, work: Work) -> None:
        super().enqueue(work)
        self._driver.wake()

    def reach(self, mark: Mark) -> None:
        mark.await_passively()
        sleep_until(mark.at)

    def synchronize(self) -> None:
        self.health.check()
        self.reach(self.mark())

    def stop(self) -> None:
        self._driver.stop()


class CopyQueue(Queue):
    """Copies at the link's rate."""

    def __init__(self, health: Health) -> None:
        super().__init__(health)
        self._driver = Driver(self, "simulated link")

    def copy(self, dst: Tensor, src: Tensor, wire: Wire) -> None:
        """Enqueue a copy in pieces between contiguous tensors (n,) of the same size in bytes."""
        starts = range(0, dst.nbytes, COPY_PIECE)
        pieces = [_Piece(dst, src, start, min(COPY_PIECE, dst.nbytes - start)) for start in starts]
        if self._work:
            # The destination may still be in use by work that this stream waits for.
            self.enqueue(lambda: _poison(pieces))
        else:
            _poison(pieces)
        now = time.perf_counter()
        for piece in pieces:
            self.enqueue(lambda piece=piece: self._carry(piece, wire, now))  # type: ignore[misc]
        if dst.nbytes > SMALL_COPY:
            self._driver.wake()

    def stop(self) -> None:
        """Stop the thread of a lost device."""
        self._driver.stop()

    def _carry(self, piece: _Piece, wire: Wire, enqueued: float) -> None:
        # The queue's clock is at the last event waited for: earlier link time cannot be used.
        at = wire.take(piece.nbytes, max(enqueued, self._clock))
        sleep_until(at)
        piece.fill()
        self._clock = at


class SimulatedEvent:
    """A point in a queue; None as a stream stands for launched work."""

    def __init__(self, launched: LaunchQueue) -> None:
        self._launched = launched
        self.latest: Mark | None = None

    def record(self, stream: Stream | None = None) -> None:
        queue = self._launched if stream is None else stream
        assert isinstance(queue, Queue)
        self.latest = queue.mark()

    def query(self) -> bool:
        return self.latest is None or (self.latest.done.is_set() and self.latest.at <= time.perf_counter())

    def synchronize(self) -> None:
        if self.latest is not None:
            self.latest.queue.health.check()
            self.latest.queue.reach(self.latest)


@dataclass(frozen=True)
class _Piece:
    """A part of a copy. Holds its tensors, so that neither is freed before delivery."""

    dst: Tensor
    src: Tensor
    start: int
    nbytes: int

    def poison(self) -> None:
        marked = min(POISON_BYTES, self.nbytes)
        begin = self.dst.data_ptr() + self.start
        ctypes.memset(begin, POISON, marked)
        ctypes.memset(begin + self.nbytes - marked, POISON, marked)

    def fill(self) -> None:
        # Not Tensor.copy_, whose thread pool would compete with the computing threads for cores.
        copy_past_caches(self.dst.data_ptr() + self.start, self.src.data_ptr() + self.start, self.nbytes)


def _poison(pieces: list[_Piece]) -> None:
    for piece in pieces:
        piece.poison()
