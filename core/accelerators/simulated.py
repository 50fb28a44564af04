"""A simulated graphics card in RAM, to test every placement, budget and overlap without a real one.

Memory is a capped, accounted pool. The link delivers at a given rate by waiting, on threads that do not compute. Until
a piece is delivered, both ends of its destination hold NaN, so that use of data that has not arrived shows. As with
real cards, only pinned memory is copied asynchronously: other memory is staged through one pinned buffer, piece by
piece, and the caller waits. Launched work is deferred until its results are needed and then done on the thread that
needs them: that thread has the cores, and a second thread pool would compete for them. A device with cores of its own
starts at once and computes beside the caller. A memory rate gives each launch a minimum duration, counted from when it
could have started. Never chosen automatically, and always named simulated.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import Tensor

from core.accelerators.base import DeviceEvent, Memory, Stream, cannot_pin, laid_together, out_of_memory, taken_apart
from core.accelerators.graph import Replay, Work
from core.accelerators.host_bytes import host_bytes
from core.accelerators.simulated_queues import (
    CopyQueue,
    DeviceQueue,
    Health,
    LaunchQueue,
    SimulatedEvent,
    Wire,
    sleep_until,
)
from core.accelerators.simulation_spec import Simulation
from core.spec import COPY_PIECE, Storage

ALIGNMENT = 64


def launch_queue(health: Health, simulation: Simulation) -> LaunchQueue:
    """Make the queue that computes for such a device."""
    if simulation.cores:
        return DeviceQueue(health, simulation.gpu, simulation.cores)
    return LaunchQueue(health, simulation.gpu)


class SimulatedAccelerator:
    """A device in RAM. Tests may `resize` it, let `others` take memory, `lose` it, or set `pin_limit`."""

    def __init__(self, simulation: Simulation, index: int = 0) -> None:
        self.name = f"simulated:{index}"
        self.simulation = simulation
        self.device = torch.device("cpu")
        self.pin_limit: int | None = None
        self.pinned_bytes = 0
        self._capacity = simulation.vram
        self._cap: int | None = None
        self._others = self._used = self._peak = 0
        # Reentrant: garbage collection may free a tensor, and so its bytes, while the same thread allocates.
        self._lock = threading.RLock()
        self._health = Health(self.name)
        self._up, self._down = Wire(simulation.link), Wire(simulation.link)
        self.shares_cores = not simulation.cores
        self._launched = launch_queue(self._health, simulation)
        self._streams: list[CopyQueue] = []
        self._pinned: dict[int, int] = {}  # address: bytes
        self._bounce, self._bouncing = host_bytes(COPY_PIECE, ALIGNMENT, lambda _: None), threading.Lock()

    def failures(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> Memory:
        self._health.check()
        with self._lock:
            return Memory(self._capacity - self._others - self._used, self._capacity, self._used, self._peak)

    def limit(self, cap: int | None) -> None:
        self._cap = cap

    def resize(self, capacity: int) -> None:
        """Change the device's memory size; existing allocations stay."""
        self._capacity = capacity

    def others(self, nbytes: int) -> None:
        """Simulate other programs that hold this many bytes."""
        self._others = nbytes

    def lose(self) -> None:
        """Make everything raise DeviceLost from now on."""
        self._health.lost = True

    def reset_peak(self) -> None:
        self._peak = self._used

    def release_cached(self) -> None:
        pass

    @property
    def link_busy_s(self) -> float:
        """Return the seconds for which the link has carried data to the device."""
        return self._up.busy_s

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self._health.check()
        nbytes = prod(shape) * dtype.itemsize
        with self._lock:
            if nbytes > (free := self.allowed() - self._used):
                raise out_of_memory(self.name, nbytes, max(0, free))
            self._used += nbytes
            self._peak = max(self._peak, self._used)
        return host_bytes(nbytes, ALIGNMENT, self._give_back).view(dtype).view(tuple(shape))

    def in_place(self, tensor: Tensor) -> Tensor:
        return tensor

    def products(self, storage: Storage) -> None:
        """Return None: its memory is RAM, where the CPU's kernels multiply."""

    def listed(self, storage: Storage) -> None:
        """Return None: it computes weight by weight."""

    def pinned(self, nbytes: int) -> Tensor:
        self._health.check()
        with self._lock:
            if self.pin_limit is not None and self.pinned_bytes + nbytes > self.pin_limit:
                raise cannot_pin(nbytes)
            self.pinned_bytes += nbytes
            address: list[int] = []
            tensor = host_bytes(nbytes, ALIGNMENT, lambda _: self._unpin(address[0]))
            address.append(tensor.data_ptr())
            self._pinned[tensor.data_ptr()] = nbytes
        return tensor

    def stream(self) -> CopyQueue:
        self._streams.append(CopyQueue(self._health))
        return self._streams[-1]

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self._launched)

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        assert isinstance(stream, CopyQueue)
        assert dst.nbytes == src.nbytes
        assert dst.is_contiguous()
        assert src.is_contiguous()
        self._health.check()
        if self._is_pinned(src) or self._is_pinned(dst):
            stream.copy(dst, src, self._up)
        else:
            self._copy_pageable(dst, src, stream)

    def _copy_pageable(self, dst: Tensor, src: Tensor, stream: CopyQueue) -> None:
        into, out = dst.view(-1).view(torch.uint8), src.view(-1).view(torch.uint8)
        stream.synchronize()
        for start in range(0, src.nbytes, COPY_PIECE):
            part = out[start : start + COPY_PIECE]
            with self._bouncing:
                ctypes.memmove(self._bounce.data_ptr(), part.data_ptr(), part.nbytes)
                stream.copy(into[start : start + COPY_PIECE], self._bounce[: part.nbytes], self._up)
                stream.synchronize()

    def _is_pinned(self, tensor: Tensor) -> bool:
        at = tensor.data_ptr()
        with self._lock:
            return any(start <= at < start + nbytes for start, nbytes in self._pinned.items())

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        self._launched.launch(work, nbytes)

    def wait(self, event: DeviceEvent) -> None:
        self._launched.wait(event)

    def record(self, event: DeviceEvent) -> None:
        event.record(None)

    def settle(self) -> None:
        self._launched.synchronize()

    def to_host(self, tensor: Tensor) -> _Small:
        self._health.check()
        return _Small(tensor, self._down)

    def to_device(self, tensor: Tensor) -> Tensor:
        self._health.check()
        return _Small(tensor, self._up).result()

    def together_to_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return taken_apart(self.to_device(laid_together(tensors)), tensors)

    def captured(
        self, work: Work, inputs: Sequence[Tensor], beside: Replay | None = None, back: Tensor | None = None
    ) -> None:
        """No-op for inputs (...) of any shape: a simulated device has no graphs."""

    def synchronize(self) -> None:
        # Launched work first, because copies may wait for it, and only the settling thread does it.
        self.settle()
        for stream in self._streams:
            stream.synchronize()

    def close(self) -> None:
        self._health.lost = True
        self._launched.stop()
        for stream in self._streams:
            stream.stop()
        self._streams.clear()

    def allowed(self) -> int:
        """Return the bytes that this program may hold now: those that others leave, at most the cap."""
        free = self._capacity - self._others
        return free if self._cap is None else min(free, self._cap)

    def _give_back(self, nbytes: int) -> None:
        with self._lock:
            self._used -= nbytes

    def _unpin(self, address: int) -> None:
        with self._lock:
            self.pinned_bytes -= self._pinned.pop(address)


class _Small:
    """A small copy. The tensor is there already, as all memory is RAM, but its delivery time is not reached yet."""

    def __init__(self, tensor: Tensor, wire: Wire) -> None:
        self._tensor = tensor
        self._at = wire.take(tensor.nbytes, time.perf_counter())

    def result(self) -> Tensor:
        sleep_until(self._at)
        return self._tensor
