"""Streams and events of the simulated device: queues whose work is done late, by a clock.

A queue is worked through by whoever waits for something in it, piece by piece; copies also by a thread of the link's.
What was launched is computed by the thread that launched it, or by that of a device with cores of its own.
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
from core.kernels.native_library import copy_past_caches
from core.spec import COPY_PIECE
from core.units import KIB

# Marks what is on its way: all ones is NaN in every floating type.
POISON, POISON_BYTES = 0xFF, 256
# A copy so small is done by whoever waits for it: waking a thread would take longer.
SMALL_COPY = 256 * KIB
# Sleeping is no more exact than this; the clocks keep the debt, so rates are right all the same.
SHORTEST_SLEEP = 50e-6
LOOK_AGAIN_S = 0.1


@dataclass
class Health:
    """Whether the device still answers; closing it ends that, too."""

    name: str
    lost: bool = False
    failure: Exception | None = None

    def check(self) -> None:
        """Raises DeviceLost, or what a thread of the device failed with."""
        if self.failure is not None:
            raise self.failure
        if self.lost:
            raise device_lost(self.name)


def sleep_until(moment: float) -> None:
    """Wait for a moment of `time.perf_counter`, roughly."""
    if (seconds := moment - time.perf_counter()) > SHORTEST_SLEEP:
        time.sleep(seconds)


class Wire:
    """One direction of the link, shared by all streams: busy until when, and for how long in all."""

    def __init__(self, rate: float) -> None:
        self._seconds_per_byte = 1 / rate
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.busy_s = 0.0

    def take(self, nbytes: int, ready: float) -> float:
        """Reserve the time of a copy that could begin at `ready`; the moment of its delivery."""
        seconds = nbytes * self._seconds_per_byte
        with self._lock:
            self._free_at = max(self._free_at, ready) + seconds
            self.busy_s += seconds
            return self._free_at


class Mark:
    """One recording of an event: fired at `at` on the simulated clock."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.done = threading.Event()
        self.at = 0.0

    def await_passively(self) -> None:
        """Wait without doing the queue's work. Raises DeviceLost."""
        while not self.done.wait(LOOK_AGAIN_S):
            self.queue.health.check()


Work = Callable[[], Mark | None]
"""Done when called, unless it returns a mark that must fire before it can be."""


class Queue:
    """Work in order. Reaching a mark means taking steps until it has fired."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._work: deque[Work] = deque()
        self._driving = threading.Lock()
        self._clock = 0.0

    def enqueue(self, work: Work) -> None:
        """Add work after what there is."""
        self._work.append(work)

    @property
    def is_empty(self) -> bool:
        """Whether no work is left."""
        return not self._work

    def mark(self) -> Mark:
        """A new mark after everything enqueued so far."""
        mark = Mark(self)

        def fire() -> None:
            mark.at = self._clock
            mark.done.set()

        if self.is_empty:  # nothing is on its way: nobody would come to fire it
            fire()
        else:
            self.enqueue(fire)
        return mark

    def reach(self, mark: Mark) -> None:
        """Do this queue's work up to the mark, on the calling thread. Raises DeviceLost."""
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
        """Do the next piece of work, or wait for what it waits for; nothing beyond `until`, which others may have
        reached meanwhile: it could wait for what only this thread can do. Raises DeviceLost."""
        with self._driving:
            self.health.check()
            if until is not None and until.done.is_set():
                return
            blocker: Mark | None = None
            try:
                blocker = self._work[0]() if self._work else None
            finally:
                # Not taken off before (an empty queue means that nothing is on its way), but after a failure, too.
                if blocker is None and self._work:
                    self._work.popleft()
        # Not while driving: the thread that can make it fire may need this queue's earlier marks.
        if blocker is not None:
            blocker.queue.reach(blocker)


class Driver:
    """A thread that works through a queue whenever it is woken."""

    def __init__(self, queue: Queue, name: str, prepare: Callable[[], object] = lambda: None) -> None:
        """`prepare` is called in the thread before all else."""
        self._queue, self._prepare = queue, prepare
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for work again."""
        self._wake.release()

    def stop(self) -> None:
        """End the thread once its device is lost."""
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        self._prepare()
        health = self._queue.health
        # As in a forward pass: what was made there may be written to here.
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
    """What is computed: on the thread that launched it, when asked for, no faster than the device's rate."""

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
        """End the thread that computes, if the device has one."""


class DeviceQueue(LaunchQueue):
    """What is computed, at once and beside whoever launched it: by a thread that uses cores of the device's own."""

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
        """Enqueue a copy in pieces, between contiguous tensors (n,) of the same bytes."""
        starts = range(0, dst.nbytes, COPY_PIECE)
        pieces = [_Piece(dst, src, start, min(COPY_PIECE, dst.nbytes - start)) for start in starts]
        if self._work:
            # What lies there may still be used by whom this stream waits for.
            self.enqueue(lambda: _poison(pieces))
        else:
            _poison(pieces)
        now = time.perf_counter()
        for piece in pieces:
            self.enqueue(lambda piece=piece: self._carry(piece, wire, now))  # type: ignore[misc]
        if dst.nbytes > SMALL_COPY:
            self._driver.wake()

    def stop(self) -> None:
        """End the thread of a device that is lost."""
        self._driver.stop()

    def _carry(self, piece: _Piece, wire: Wire, enqueued: float) -> None:
        # The clock is that of the last event waited for: time before it cannot be used.
        at = wire.take(piece.nbytes, max(enqueued, self._clock))
        sleep_until(at)
        piece.fill()
        self._clock = at


class SimulatedEvent:
    """A point in a queue; None stands for what was launched."""

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
    """A part of a copy. Holds its tensors, so that neither is freed before it is delivered."""

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
        # Not copy_: it would bring a team of threads of its own to the cores that compute.
        copy_past_caches(self.dst.data_ptr() + self.start, self.src.data_ptr() + self.start, self.nbytes)


def _poison(pieces: list[_Piece]) -> None:
    for piece in pieces:
        piece.poison()
