"""The asynchronous parameter manager: streams rows to the device just before they are needed.

It implements two of HeteGen's four overlapped stages: one thread copies from the weights' own pageable, mapped memory
into a small ring of pinned staging buffers, and a separate stream copies from there to the device. The other two,
computation on the CPU and on the device, overlap in `hetero_linear`. The thread walks through the pass's chunks in
order and wraps around to the next token, so the link is also busy between linears and tokens.

`SerialCopies` is the baseline: plain offloading, which copies while the device waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Protocol

import torch
from torch import Tensor

from core.accelerators.base import PINNED, Accelerator, DeviceEvent, Stream, device_lost
from core.errors import DeviceLost, NotEnoughMemory
from core.kernels.host_copy import CopyPool
from core.offload.host_weight import DeviceRows, HostWeight
from core.spec import LinearPlan, Ring

FEWEST_PINNED = 2
"""With fewer pinned buffers no transfer overlaps with the use of another buffer: pageable memory is as good then."""
WAIT_S = 60.0
"""Longer than any link takes to copy one buffer: the device is lost."""


@dataclass(frozen=True)
class Chunk:
    """Rows `begin` to `end` of a linear that fit into one buffer, with all columns or the given range.

    `expert`: which expert's weight, if the linear has several.
    """

    linear: str
    begin: int
    end: int
    expert: int = 0
    columns: tuple[int, int] | None = None

    def weight(self, weights: Mapping[str, Sequence[HostWeight]]) -> HostWeight:
        """Return the weight that the rows belong to."""
        whole = weights[self.linear][self.expert]
        return whole if self.columns is None else whole.cut(*self.columns)


@dataclass
class Slot:
    """A pair of buffers; `copied` and `freed` mark when the host's and the device's may be overwritten."""

    host: Tensor
    device: Tensor
    copied: DeviceEvent
    freed: DeviceEvent


@dataclass(frozen=True)
class Fetched:
    """A chunk that is in a slot or in flight to it; `epoch` is the number of its schedule."""

    epoch: int
    chunk: Chunk
    slot: Slot
    rows: DeviceRows


def chunks_of(plan: LinearPlan, tokens: int, weight: HostWeight, buffer_bytes: int, expert: int = 0) -> list[Chunk]:
    """Return the chunks of a linear's streamed rows for `tokens` input rows. Raises ValueError if no row fits a
    buffer."""
    rows = plan.at(tokens)
    begin, end, columns = rows.resident, rows.resident + rows.streamed, None
    if plan.by_columns and rows.streamed:
        columns, begin, end = (begin, end), 0, weight.rows
        weight = weight.cut(*columns)
    elif plan.by_columns:
        return []
    fitting = buffer_bytes // weight.row_bytes
    per_buffer = fitting // weight.quantum * weight.quantum or fitting
    if end > begin and not per_buffer:
        raise ValueError(f"a buffer of {buffer_bytes} bytes holds no row of {plan.name}")
    step = per_buffer or 1
    return [Chunk(plan.name, at, min(at + step, end), expert, columns) for at in range(begin, end, step)]


class Streaming(Protocol):
    """Streams weight chunks to the device. `starved`: less memory could be pinned for it than planned."""

    starved: bool

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """Start a pass that takes these chunks in this order and may skip some. `again`: the next pass takes them,
        too."""

    def has_ready(self, chunk: Chunk) -> bool:
        """Return whether the chunk can be taken without waiting for the link."""

    def take(self, chunk: Chunk) -> AbstractContextManager[DeviceRows]:
        """Provide the chunk on the device for work launched inside the context."""

    def close(self) -> None:
        """Release everything."""


class SerialCopies:
    """Copies a chunk from the weights' own memory when it is needed, after all earlier work has completed."""

    starved = False

    def __init__(self, accelerator: Accelerator, ring: Ring, weights: Mapping[str, Sequence[HostWeight]]) -> None:
        """Allocate one buffer on the device. Raises NotEnoughMemory if it does not fit."""
        self._accelerator = accelerator
        self._weights = weights
        self._stream = accelerator.stream()
        self._slot: Tensor | None = accelerator.empty((ring.bytes,), torch.uint8)

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """No-op: nothing is prefetched."""

    def has_ready(self, chunk: Chunk) -> bool:
        """Return True: chunks are copied when they are taken."""
        return True

    @contextmanager
    def take(self, chunk: Chunk) -> Iterator[DeviceRows]:
        """Provide the chunk on the device for work launched inside the context."""
        assert self._slot is not None
        # Not needed for ordering, which `copied_rows` ensures; the baseline must not overlap anything.
        self._accelerator.synchronize()
        weight = chunk.weight(self._weights)
        yield copied_rows(self._accelerator, self._stream, weight, chunk.begin, chunk.end, self._slot)

    def close(self) -> None:
        """Release the buffer."""
        self._slot = None


def follow(accelerator: Accelerator, stream: Stream) -> None:
    """Make later copies wait for all launched work, which may still use the memory that a new buffer reuses."""
    launched = accelerator.event()
    accelerator.record(launched)
    stream.wait(launched)


def copied_rows(
    accelerator: Accelerator, stream: Stream, weight: HostWeight, begin: int, end: int, buffer: Tensor
) -> DeviceRows:
    """Copy rows from host memory into a device buffer (nbytes,) and wait for them. Raises DeviceLost."""
    follow(accelerator, stream)
    at, parts = 0, [part.contiguous() for part in weight.parts(begin, end)]
    for part in parts:
        accelerator.copy_async(buffer[at : at + part.nbytes], part, stream)
        at += part.nbytes
    stream.synchronize()
    return weight.on_device(accelerator, buffer, begin, end)


class ParameterManager:
    """Prefetches a schedule's chunks cyclically, as far ahead as the ring buffer has room."""

    def __init__(self, accelerator: Accelerator, ring: Ring, weights: Mapping[str, Sequence[HostWeight]]) -> None:
        """Allocate the ring. Raises NotEnoughMemory if the device has no room for it."""
        self._accelerator = accelerator
        self._weights = weights
        self._stream = accelerator.stream()
        self._copiers = CopyPool(ring.copiers)
        hosts = self._pinned(ring)
        self.starved = len(hosts) < ring.buffers
        if len(hosts) < min(FEWEST_PINNED, ring.buffers):
            hosts = [torch.empty(ring.bytes, dtype=torch.uint8) for _ in range(ring.buffers)]
        self.buffers = len(hosts)
        """Number of staging buffers: as many as requested, or as could be pinned."""
        self._free = [self._slot(host) for host in hosts]
        self._ready: deque[Fetched] = deque()
        self._schedule: Sequence[Chunk] = ()
        self._again = True
        self._next = 0  # index in the schedule of the next chunk to fetch
        self._taken = 0  # number of the schedule's chunks that the current pass has taken or skipped
        self._epoch = 0  # number of schedules so far; chunks fetched for an older one are dropped
        self._error: BaseException | None = None
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="parameters", daemon=True)
        self._thread.start()

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """Start a pass that takes these chunks in this order, and may skip some (experts that no token is routed to).

        The next pass is prefetched only with `again`, and what was prefetched stays valid if it is the same schedule
        object.
        """
        with self._changed:
            if schedule is self._schedule and self._again and self._taken in (0, len(schedule)):
                self._taken, self._again = 0, again
                return
            self._schedule, self._again, self._next, self._taken = schedule, again, 0, 0
            self._epoch += 1
            self._changed.notify_all()

    def has_ready(self, chunk: Chunk) -> bool:
        """Return whether the chunk can be taken without waiting for the ring."""
        with self._changed:
            return any(one.epoch == self._epoch and one.chunk == chunk for one in self._ready)

    @contextmanager
    def take(self, chunk: Chunk) -> Iterator[DeviceRows]:
        """Provide the chunk on the device for work launched inside the context."""
        fetched = self._wait_for(chunk)
        self._accelerator.wait(fetched.slot.copied)
        try:
            yield fetched.rows
        finally:
            self._accelerator.record(fetched.slot.freed)
            self._release(fetched.slot)

    def close(self) -> None:
        """Stop the thread and release the ring."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._copiers.close()
        with suppress(DeviceLost):
            # Prefetched chunks may still be in flight to buffers that others get next.
            self._accelerator.synchronize()
        self._free.clear()
        self._ready.clear()

    def _slot(self, host: Tensor) -> Slot:
        device = self._accelerator.empty((host.nbytes,), torch.uint8)
        copied, freed = self._accelerator.event(), self._accelerator.event()
        self._accelerator.record(freed)
        return Slot(host, device, copied, freed)

    def _pinned(self, ring: Ring) -> list[Tensor]:
        """Return pinned buffers, as many as the system grants."""
        found: list[Tensor] = []
        for _ in range(ring.buffers):
            try:
                found.append(self._accelerator.pinned(ring.bytes))
            except NotEnoughMemory as error:
                if error.device != PINNED:
                    raise
                break
        return found

    def _wait_for(self, chunk: Chunk) -> Fetched:
        with self._changed:
            while True:
                if not self._changed.wait_for(lambda: self._ready or self._error, timeout=WAIT_S):
                    raise device_lost(self._accelerator.name)
                if self._error is not None:
                    raise self._error
                found = self._ready.popleft()
                self._taken += found.epoch == self._epoch
                if found.epoch == self._epoch and found.chunk == chunk:
                    return found
                self._free.append(found.slot)
                self._changed.notify_all()

    def _release(self, slot: Slot) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def _run(self) -> None:
        """Fetch the next chunk whenever a buffer is free; runs in the thread."""
        while (job := self._next_job()) is not None:
            epoch, chunk, slot = job
            try:
                fetched = Fetched(epoch, chunk, slot, self._fetch(chunk, slot))
            except Exception as error:  # noqa: BLE001  raised again in the thread that waits for the piece
                self._fail(error)
                return
            with self._changed:
                self._ready.append(fetched)
                self._changed.notify_all()

    def _next_job(self) -> tuple[int, Chunk, Slot] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._free and self._next < len(self._schedule)))
            if self._closed:
                return None
            chunk = self._schedule[self._next]
            self._next += 1
            if self._again:
                self._next %= len(self._schedule)
            return self._epoch, chunk, self._free.pop(0)

    def _fetch(self, chunk: Chunk, slot: Slot) -> DeviceRows:
        slot.copied.synchronize()
        weight = chunk.weight(self._weights)
        nbytes = self._pack(weight.parts(chunk.begin, chunk.end), slot.host)
        self._stream.wait(slot.freed)
        self._accelerator.copy_async(slot.device[:nbytes], slot.host[:nbytes], self._stream)
        slot.copied.record(self._stream)
        return weight.on_device(self._accelerator, slot.device, chunk.begin, chunk.end)

    def _pack(self, parts: Sequence[Tensor], buffer: Tensor) -> int:
        """Copy host tensors with contiguous rows end to end into a byte buffer (nbytes,); return the bytes written.

        Not with torch, which would start a second thread pool here that competes with the computing one.
        """
        at = 0
        for part in parts:
            self._copiers.lay(buffer.data_ptr() + at, part)
            at += part.nbytes
        return at

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
