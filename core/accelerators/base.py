"""The seam to a device that computes beside the CPU: memory, streams, events, copies, and its two failures.

What is launched is only queued; the calling thread goes on. The streamed rows of a linear are computed by

    copies.wait(freed)                                   # until nothing reads the slot any more
    device.copy_async(slot, weights, copies)             # on a stream of its own
    arrived.record(copies)
    device.wait(arrived)                                 # holds back what is launched from now on, not this thread
    device.launch(lambda: torch.mm(x, slot.T, out=part), nbytes)
    device.record(freed)
    ...the CPU computes its rows on this thread...
    device.settle()                                      # from here on ordinary torch calls may read `part`

Everything enqueued is done in order within a stream and in any order between streams, unless an event says otherwise.
Ordinary torch calls on the device's tensors run on the same stream as what is launched, but know nothing of it before
`settle`: all that reads what streams bring, or may overlap with the CPU, is launched.
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
from core.sentence import sentence
from core.units import format_memory

PINNED = "pinned"
"""`device` of the NotEnoughMemory that pinning raises."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: held by nobody (below 0 where a pool has shrunk under what is used), in all, ours, our most.
    A limit of our own counts in none of them."""

    free: int
    total: int
    used: int
    peak: int


class DeviceEvent(Protocol):
    """A point in a stream; one that was never recorded counts as reached."""

    def record(self, stream: Stream | None = None) -> None:
        """Mark the point after everything enqueued in this stream so far (None = what was launched)."""

    def query(self) -> bool:
        """True if everything before it has been done."""

    def synchronize(self) -> None:
        """Wait for it on the calling thread. Raises DeviceLost."""


class Stream(Protocol):
    """An ordered queue of copies."""

    def wait(self, event: DeviceEvent) -> None:
        """Hold back what is enqueued from now on until `event`; the calling thread goes on."""

    def synchronize(self) -> None:
        """Wait on the calling thread until all is done. Raises DeviceLost."""


class HostCopy(Protocol):
    """A copy to the host under way."""

    def result(self) -> Tensor:
        """The host's tensor, of the same shape (...), waited for. Raises DeviceLost."""


class Accelerator(Protocol):
    """One device; `device` is where its tensors live for torch. `shares_cores`: it computes on the processor's own."""

    name: str
    shares_cores: bool
    device: torch.device

    def failures(self) -> AbstractContextManager[None]:
        """Turns what torch's own operations on the device raise into NotEnoughMemory and DeviceLost."""

    def memory(self) -> Memory:
        """Asked freshly. Raises DeviceLost."""

    def limit(self, cap: int | None) -> None:
        """Never hold more than `cap` bytes from now on (None = as many as are free)."""

    def reset_peak(self) -> None:
        """Start counting the most used anew."""

    def release_cached(self) -> None:
        """Give memory back to others that is kept for later but not used."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor (*shape) of any content on the device. Raises NotEnoughMemory with the device's name, DeviceLost."""

    def pinned(self, nbytes: int) -> Tensor:
        """Page-locked bytes (uint8, exactly `nbytes`) to copy from and to. Raises NotEnoughMemory(device='pinned')."""

    def stream(self) -> Stream:
        """A new stream for copies."""

    def event(self) -> DeviceEvent:
        """A new event, not recorded yet."""

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        """Enqueue a copy between host and device, both (...) contiguous and of the same bytes. `src` must not
        change before it is done; from or to memory that is not pinned it may block. Raises DeviceLost."""

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        """Compute on the device after all that was launched before. `nbytes`: weights read, for simulated time."""

    def wait(self, event: DeviceEvent) -> None:
        """Hold back what is launched from now on until `event`; the calling thread goes on."""

    def record(self, event: DeviceEvent) -> None:
        """Mark the point after everything launched so far."""

    def settle(self) -> None:
        """Make what was launched visible to ordinary torch calls on this thread. Raises DeviceLost."""

    def to_host(self, tensor: Tensor) -> HostCopy:
        """Begin to bring a small result (...) to the host; to be called before launching what it need not wait for."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """A small host tensor (...) on the device, for what is launched or called from now on."""

    def together_to_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same of several (...) of one type in one copy, each in its shape."""

    def captured(self, work: Work, inputs: Sequence[Tensor]) -> Replay | None:
        """Run `work` once on copies of these host tensors (...), then capture it; None if the device has no graphs.
        Raises NotEnoughMemory, DeviceLost, and RuntimeError if the work synchronises with the host."""

    def synchronize(self) -> None:
        """Wait until everything is done. Raises DeviceLost."""

    def close(self) -> None:
        """Let go of threads and caches; nothing else may be called afterwards."""


def laid_together(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """Host tensors of one type end to end in a new one (n,)."""
    whole = torch.empty(sum(one.numel() for one in tensors), dtype=tensors[0].dtype, pin_memory=pinned)
    return torch.cat([one.reshape(-1) for one in tensors], out=whole)


def taken_apart(whole: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What `laid_together` made of these (n,), wherever it is by now: views in their shapes."""
    parts = whole.split_with_sizes([one.numel() for one in tensors])
    return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def out_of_memory(name: str, wanted: int | None = None, free: int | None = None) -> NotEnoughMemory:
    """The failure of an allocation on a device."""
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
    """The failure to page-lock memory."""
    return NotEnoughMemory(
        sentence("The system does not let {} of memory be locked for fast copies.", format_memory(nbytes)),
        "",
        "Close other programs, or go on with slower copies.",
        device=PINNED,
    )


def not_supported(name: str) -> DeviceLost:
    """The failure of everything on a card that the installed torch was not built for."""
    return DeviceLost(
        sentence("The installed torch has no code for the graphics card {}.", name),
        "The card is older or newer than those it was built for.",
        "Install another build of torch to use it; everything runs on the processor meanwhile.",
    )


def device_lost(name: str) -> DeviceLost:
    """The failure of everything after a device stopped answering."""
    return DeviceLost(
        sentence("The graphics device {} stopped answering.", name),
        "Its driver was reset, or the computer has been asleep.",
        "Load the model again to use it.",
    )
