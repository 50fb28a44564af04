"""The asynchronous parameter manager: brings streamed rows to the compute device just before they are needed.

Two of HeteGen's four overlapped stages live here: the copy from the weights' own (pageable, mapped) memory into a small
ring of pinned buffers, done by one thread, and the copy from there to the device, queued on a stream of its own. The
other two, computing on the CPU and on the device, go on meanwhile in `hetero_linear`. The thread walks through the
pass's pieces in their order and starts over with the next token, so the link also works between linears and tokens.

`SerialCopies` is what it is compared with: plain offloading, which copies when the device waits for it.
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
"""With fewer locked buffers nothing is fetched while another is used: then ordinary memory does as well."""
WAIT_S = 60.0
"""No link is so slow that one buffer takes this long: the device is gone."""


@dataclass(frozen=True)
class Chunk:
    """Rows `begin` to `end` of one linear (of one `expert` where it has several), of all its columns or of these: what
    fits into one buffer."""

    linear: str
    begin: int
    end: int
    expert: int = 0
    columns: tuple[int, int] | None = None

    def weight(self, weights: Mapping[str, Sequence[HostWeight]]) -> HostWeight:
        """What it is a range of rows of."""
        whole = weights[self.linear][self.expert]
        return whole if self.columns is None else whole.cut(*self.columns)


@dataclass
class Slot:
    """One buffer on each side; `copied` and `freed` say when the host's and the device's may be written again."""

    host: Tensor
    device: Tensor
    copied: DeviceEvent
    freed: DeviceEvent


@dataclass(frozen=True)
class Fetched:
    """A piece that is in a slot or on its way there; `epoch` counts the schedules."""

    epoch: int
    chunk: Chunk
    slot: Slot
    rows: DeviceRows


def chunks_of(plan: LinearPlan, tokens: int, weight: HostWeight, buffer_bytes: int, expert: int = 0) -> list[Chunk]:
    """The streamed rows of one linear for `tokens` rows of input, cut to the buffer's size."""
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
    """Streams weight chunks to the device. `starved`: the system let less memory be pinned for it than was planned."""

    starved: bool

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """A pass starts that will take these pieces in this order, and may skip some; `again`: the next pass, too."""

    def has_ready(self, chunk: Chunk) -> bool:
        """Whether the piece can be taken without waiting for another."""

    def take(self, chunk: Chunk) -> AbstractContextManager[DeviceRows]:
        """The piece on the device; work launched inside the block finds it there."""

    def close(self) -> None:
        """Give everything back."""


class SerialCopies:
    """Copies a piece from the weights' own memory when it is needed, after what came before has been computed."""

    starved = False

    def __init__(self, accelerator: Accelerator, ring: Ring, weights: Mapping[str, Sequence[HostWeight]]) -> None:
        """Allocates one buffer on the device. Raises NotEnoughMemory where there is no room for it."""
        self._accelerator = accelerator
        self._weights = weights
        self._stream = accelerator.stream()
        self._slot: Tensor | None = accelerator.empty((ring.bytes,), torch.uint8)

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """No-op: nothing is fetched ahead."""

    def has_ready(self, chunk: Chunk) -> bool:
        """It is copied when it is taken."""
        return True

    @contextmanager
    def take(self, chunk: Chunk) -> Iterator[DeviceRows]:
        """The piece on the device; work launched inside the block finds it there."""
        assert self._slot is not None
        # Not for order, which `copied_rows` keeps: nothing is to overlap here.
        self._accelerator.synchronize()
        weight = chunk.weight(self._weights)
        yield copied_rows(self._accelerator, self._stream, weight, chunk.begin, chunk.end, self._slot)

    def close(self) -> None:
        """Give the buffer back."""
        self._slot = None


def follow(accelerator: Accelerator, stream: Stream) -> None:
    """Let copies wait for all that was launched: new memory may still be in use by who had it before."""
    launched = accelerator.event()
    accelerator.record(launched)
    stream.wait(launched)


def copied_rows(
    accelerator: Accelerator, stream: Stream, weight: HostWeight, begin: int, end: int, buffer: Tensor
) -> DeviceRows:
    """Rows copied from where they lie into a device's buffer (nbytes,), and waited for. Raises DeviceLost."""
    follow(accelerator, stream)
    at, parts = 0, [part.contiguous() for part in weight.parts(begin, end)]
    for part in parts:
        accelerator.copy_async(buffer[at : at + part.nbytes], part, stream)
        at += part.nbytes
    stream.synchronize()
    return weight.on_device(buffer, begin, end)


class ParameterManager:
    """Prefetches the pieces of a schedule, over and over, as far ahead as the ring has room."""

    def __init__(self, accelerator: Accelerator, ring: Ring, weights: Mapping[str, Sequence[HostWeight]]) -> None:
        """Allocates the ring. Raises NotEnoughMemory where the device has no room for it."""
        self._accelerator = accelerator
        self._weights = weights
        self._stream = accelerator.stream()
        self._copiers = CopyPool(ring.copiers)
        hosts = self._pinned(ring)
        self.starved = len(hosts) < ring.buffers
        if len(hosts) < min(FEWEST_PINNED, ring.buffers):
            hosts = [torch.empty(ring.bytes, dtype=torch.uint8) for _ in range(ring.buffers)]
        self.buffers = len(hosts)
        """Staging buffers in use: as many as asked for, or as could be pinned."""
        self._free = [self._slot(host) for host in hosts]
        self._ready: deque[Fetched] = deque()
        self._schedule: Sequence[Chunk] = ()
        self._again = True
        self._next = 0  # of the schedule, to be fetched
        self._taken = 0  # of the schedule, or skipped, by the pass that runs
        self._epoch = 0  # counts new schedules; what was fetched for an older one is dropped
        self._error: BaseException | None = None
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="parameters", daemon=True)
        self._thread.start()

    def begin_pass(self, schedule: Sequence[Chunk], *, again: bool = True) -> None:
        """A pass starts that will take these pieces in this order, and may skip some (experts that no token asks for);
        what was fetched ahead for the same schedule stays. Ahead of the next pass is fetched only for `again`."""
        with self._changed:
            if schedule is self._schedule and self._taken in (0, len(schedule)):
                self._taken = 0
                return
            self._schedule, self._again, self._next, self._taken = schedule, again, 0, 0
            self._epoch += 1
            self._changed.notify_all()

    def has_ready(self, chunk: Chunk) -> bool:
        """Whether the piece can be taken without waiting for the ring."""
        with self._changed:
            return any(one.epoch == self._epoch and one.chunk == chunk for one in self._ready)

    @contextmanager
    def take(self, chunk: Chunk) -> Iterator[DeviceRows]:
        """The piece on the device; work launched inside the block finds it there."""
        fetched = self._wait_for(chunk)
        self._accelerator.wait(fetched.slot.copied)
        try:
            yield fetched.rows
        finally:
            self._accelerator.record(fetched.slot.freed)
            self._release(fetched.slot)

    def close(self) -> None:
        """End the thread and give the ring back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._copiers.close()
        with suppress(DeviceLost):
            # What was fetched ahead may still be on its way into buffers that others get now.
            self._accelerator.synchronize()
        self._free.clear()
        self._ready.clear()

    def _slot(self, host: Tensor) -> Slot:
        device = self._accelerator.empty((host.nbytes,), torch.uint8)
        copied, freed = self._accelerator.event(), self._accelerator.event()
        self._accelerator.record(freed)
        return Slot(host, device, copied, freed)

    def _pinned(self, ring: Ring) -> list[Tensor]:
        """Locked buffers, as many as the system gives."""
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
        """The thread: fetch the next piece whenever a buffer is free."""
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
        return weight.on_device(slot.device, chunk.begin, chunk.end)

    def _pack(self, parts: Sequence[Tensor], buffer: Tensor) -> int:
        """Lay host tensors, of contiguous rows, one behind the other into a byte buffer; the bytes written.

        Not by torch, which would start a second pool of threads here that competes with the one that computes.
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
