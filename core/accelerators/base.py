"""The interface to a device that computes beside the CPU: memory, streams, events, copies, and its two failures.

Launches are asynchronous: they enqueue work, and the calling thread continues. The streamed rows of a linear are
computed by

    copies.wait(freed)                                   # until no launched work reads the slot any more
    device.copy_async(slot, weights, copies)             # on its own stream
    arrived.record(copies)
    device.wait(arrived)                                 # delays later launches, not the calling thread
    device.launch(lambda: torch.mm(x, slot.T, out=part), nbytes)
    device.record(freed)
    ...the CPU computes its rows on this thread...
    device.settle()                                      # from here on ordinary torch calls may read `part`

Work is ordered within a stream, and unordered between streams unless an event orders it. Ordinary torch calls on the
device's tensors run on the same stream as launched work, but may only rely on its results after `settle`. Everything
that reads streamed data, or is to overlap with the CPU, must therefore be launched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.accelerators.graph import Replay, Work
from core.errors import DeviceLost, NotEnoughMemory
from core.kernels.device_products import DeviceProducts, ListedProducts
from core.sentence import sentence
from core.spec import Storage
from core.units import format_memory

PINNED = "pinned"
"""The `device` of a NotEnoughMemory raised by pinning."""


@dataclass(frozen=True)
class Memory:
    """Device memory in bytes: available, total, used by this process, its peak, and `cached` by torch.

    `free` includes what is cached, and is negative if a pool has shrunk below what is in use. A limit set by this
    process affects none of them.
    """

    free: int
    total: int
    used: int
    peak: int
    cached: int = 0

    @property
    def untouched(self) -> int:
        """Bytes that neither this process nor another has taken from the system."""
        return self.free - self.cached


class DeviceEvent(Protocol):
    """A point in a stream. An event that was never recorded counts as reached."""

    def record(self, stream: Stream | None = None) -> None:
        """Mark the point after all work enqueued in this stream so far (None = after all launches)."""

    def query(self) -> bool:
        """Return whether all work before it has completed."""

    def synchronize(self) -> None:
        """Block the calling thread until it is reached. Raises DeviceLost."""


class Stream(Protocol):
    """An ordered queue of copies."""

    def wait(self, event: DeviceEvent) -> None:
        """Delay work enqueued from now on until `event`, without blocking the calling thread."""

    def synchronize(self) -> None:
        """Block the calling thread until all work has completed. Raises DeviceLost."""


class HostCopy(Protocol):
    """A copy to the host in flight."""

    def result(self) -> Tensor:
        """Wait for the copy and return the host tensor, of the same shape (...). Raises DeviceLost."""


class Accelerator(Protocol):
    """A device. `device`: the torch device of its tensors; `shares_cores`: it computes on the CPU's own cores."""

    name: str
    shares_cores: bool
    device: torch.device

    def failures(self) -> AbstractContextManager[None]:
        """Translate the errors of torch operations on the device into NotEnoughMemory and DeviceLost."""

    def memory(self) -> Memory:
        """Query the current memory figures. Raises DeviceLost."""

    def limit(self, cap: int | None) -> None:
        """Limit this process to `cap` bytes from now on (None = all that is free)."""

    def reset_peak(self) -> None:
        """Restart the peak memory statistics."""

    def release_cached(self) -> None:
        """Return cached, unused memory to the system."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate an uninitialised tensor (*shape) on the device. Raises NotEnoughMemory with its name, DeviceLost."""

    def in_place(self, tensor: Tensor) -> Tensor:
        """Return a contiguous host tensor (...) as one of the device, which must share the host's memory; no copy.

        Launched work may read the host's memory until `synchronize` returns. Raises RuntimeError if it cannot.
        """

    def products(self, storage: Storage) -> DeviceProducts | None:
        """Return what multiplies weights of this storage as they lie; None if they must be dequantised first."""

    def listed(self, storage: Storage) -> ListedProducts | None:
        """Return what multiplies several weights of this storage in one launch; None without such a kernel."""

    def pinned(self, nbytes: int) -> Tensor:
        """Allocate exactly (nbytes,) of page-locked uint8. Raises NotEnoughMemory(device='pinned')."""

    def stream(self) -> Stream:
        """Create a stream for copies."""

    def event(self) -> DeviceEvent:
        """Create an event that has not been recorded yet."""

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        """Enqueue a copy between host and device, both (...) contiguous and of the same size in bytes. Raises
        DeviceLost.

        `src` must not change before the copy has completed. Copies from or to unpinned memory may block.
        """

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        """Enqueue work on the device, after all earlier launches. `nbytes`: weights it reads, for simulated time."""

    def wait(self, event: DeviceEvent) -> None:
        """Delay later launches until `event`, without blocking the calling thread."""

    def record(self, event: DeviceEvent) -> None:
        """Mark the point after all launches so far."""

    def settle(self) -> None:
        """Make launched results visible to ordinary torch calls on this thread. Raises DeviceLost."""

    def to_host(self, tensor: Tensor) -> HostCopy:
        """Start copying a small result (...) to the host. Call it before launching work that it need not wait for."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a small host tensor (...) to the device, for later launches and calls."""

    def together_to_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copy several tensors (...) of one type to the device in one transfer, keeping their shapes."""

    def captured(
        self, work: Work, inputs: Sequence[Tensor], beside: Replay | None = None, back: Tensor | None = None
    ) -> Replay | None:
        """Run `work` once on copies of these tensors (...), then capture it; None if the device has no graphs.

        It shares memory with `beside`, so that the two must never run at the same time. `back`: like the result of any
        gap (...), if there are gaps.

        Raises NotEnoughMemory, DeviceLost, and RuntimeError if the work synchronises with the host.
        """

    def synchronize(self) -> None:
        """Wait until all work has completed. Raises DeviceLost."""

    def close(self) -> None:
        """Release threads and caches. No other method may be called afterwards."""


def laid_together(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """Concatenate the elements of host tensors of one type in a new tensor (n,)."""
    whole = torch.empty(sum(one.numel() for one in tensors), dtype=tensors[0].dtype, pin_memory=pinned)
    return torch.cat([one.reshape(-1) for one in tensors], out=whole)


def taken_apart(whole: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Split `whole` (n,), made by `laid_together` from `tensors` or copied since, into views of their shapes."""
    parts = whole.split_with_sizes([one.numel() for one in tensors])
    return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def out_of_memory(name: str, wanted: int | None = None, free: int | None = None) -> NotEnoughMemory:
    """Return the error of a failed allocation on a device."""
    why = (
        ""
        if wanted is None or free is None
        else sentence("{} were needed, {} are free.", format_memory(wanted), format_memory(free))
    )
    return NotEnoughMemory(
        "The graphics card has too little free memory.",
        why,
        "Close other programs that use the graphics card.",
        device=name,
    )


def cannot_pin(nbytes: int) -> NotEnoughMemory:
    """Return the error of page-locking memory."""
    return NotEnoughMemory(
        sentence("The system does not let {} of memory be locked for fast copies.", format_memory(nbytes)),
        "",
        "Close other programs, or go on with slower copies.",
        device=PINNED,
    )


def not_supported(name: str) -> DeviceLost:
    """Return the error of a card that the installed torch was not built for."""
    return DeviceLost(
        sentence("The installed torch has no code for the graphics card {}.", name),
        "The card is older or newer than those it was built for.",
        "Install another build of torch to use it; everything runs on the processor meanwhile.",
    )


def device_lost(name: str) -> DeviceLost:
    """Return the error of a device that stopped answering."""
    return DeviceLost(
        sentence("The graphics device {} stopped answering.", name),
        "Its driver was reset, or the computer has been asleep.",
        "Load the model again to use it.",
    )
