"""A graphics card of any maker through torch's device-independent API: CUDA, ROCm (as cuda), Intel XPU, Apple MPS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod

import torch
from torch import Tensor

from core.accelerators.base import (
    DeviceEvent,
    Memory,
    Stream,
    device_lost,
    laid_together,
    not_supported,
    out_of_memory,
    taken_apart,
)
from core.accelerators.capabilities import capabilities_of
from core.accelerators.graph import Graph, Pool, Recording, Replay, Work
from core.errors import HeteGenError
from core.kernels.device_products import CardProducts, DeviceProducts, ListedProducts
from core.spec import COPY_PIECE, NO_TRIAL, Abilities, Storage

# The makers' libraries (CUBLAS, HIPBLAS) allocate memory of their own on first use; torch reports their failures as
# RuntimeError. "Invalid buffer size": Metal, of a buffer larger than it makes.
FULL = (
    "out of memory", "BLAS_STATUS_ALLOC_FAILED", "BLAS_STATUS_NOT_INITIALIZED", "OUT_OF_DEVICE_MEMORY",
    "OUT_OF_RESOURCES", "Invalid buffer size",
)  # fmt: skip
LOST = ("DEVICE_LOST",)
NO_CODE = ("no kernel image", "HIP error: invalid device function", "INVALID_BINARY", "INVALID_KERNEL_NAME")


def cards() -> list[torch.device]:
    """Return the cards that torch can use, in its order."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return [] if found is None else [torch.device(found.type, i) for i in range(torch.accelerator.device_count())]


class CardEvent:
    """A point in a stream. Waiting for it blocks without spinning, unless it is `hasty`.

    A spinning thread would take a core from those that compute.
    """

    def __init__(self, card: Card, *, hasty: bool = False) -> None:
        self._card = card
        self._event: torch.Event | None = None
        self._hasty = hasty

    def record(self, stream: Stream | None = None) -> None:
        assert stream is None or isinstance(stream, CardStream)
        with self._card.failures():
            if self._event is None:
                self._event = torch.Event(self._card.device, blocking=not self._hasty)
            self._event.record(self._card.current() if stream is None else stream.raw)

    def query(self) -> bool:
        with self._card.failures():
            return self._event is None or self._event.query()

    def synchronize(self) -> None:
        with self._card.failures():
            if self._event is not None:
                self._event.synchronize()

    def hold(self, stream: torch.Stream) -> None:
        """Make `stream` wait for the event. On devices with one stream all work is in order."""
        with self._card.failures():
            if self._event is not None and self._card.can.streams:
                stream.wait_event(self._event)


class CardStream:
    """A stream for copies; the current stream on devices without separate ones."""

    def __init__(self, card: Card) -> None:
        self._card = card
        with card.failures():
            self.raw = torch.Stream(card.device) if card.can.streams else card.current()

    def entered(self) -> AbstractContextManager[object]:
        """Return a context in which torch's operations are enqueued in this stream."""
        return self.raw if self._card.can.streams else nullcontext()

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, CardEvent)
        event.hold(self.raw)

    def synchronize(self) -> None:
        if not self._card.can.streams:  # torch cannot wait for Apple's one stream, only for the device
            self._card.synchronize()
            return
        with self._card.failures():
            self.raw.synchronize()


class CardHostCopy:
    """A copy of a small result to the host."""

    def __init__(self, card: Card, tensor: Tensor) -> None:
        # Waited for at every split linear, for a few microseconds: waking up would take longer than spinning.
        self._arrived = CardEvent(card, hasty=True)
        with card.failures():
            if card.can.streams:
                self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._host.copy_(tensor, non_blocking=True)
                self._arrived.record()
            else:
                self._host = tensor.cpu()

    def result(self) -> Tensor:
        self._arrived.synchronize()
        return self._host


class Card:
    """A graphics card. Launched work goes to torch's current stream, as the model's own operations do."""

    shares_cores = False

    def __init__(self, device: torch.device, abilities: Abilities = NO_TRIAL) -> None:
        """`abilities`: what its trial found; without a trial only what torch guarantees is used."""
        self.device = device
        self.name = f"{device.type}:{device.index}"
        self.can = capabilities_of(device)
        self._products = CardProducts(device, abilities)
        self._captures: CardStream | None = None
        with self.failures():
            torch.zeros(1, device=device)  # the first use initialises the driver's context
            torch.accelerator.synchronize(device)

    @contextmanager
    def failures(self, wanted: int | None = None) -> Iterator[None]:
        """Translate torch's errors into NotEnoughMemory and DeviceLost."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.name, wanted, max(0, self.memory().free)) from error
        except RuntimeError as error:
            if (failure := failure_of(self.name, error)) is None:
                raise
            raise failure from error

    def current(self) -> torch.Stream:
        """Return the stream of launched work."""
        return torch.accelerator.current_stream(self.device)

    def memory(self) -> Memory:
        with self.failures():
            return self.can.memory(self.device)

    def limit(self, cap: int | None) -> None:
        fraction = 1.0 if cap is None else min(1.0, cap / self.memory().total)
        with self.failures():
            self.can.limit(self.device, fraction)

    def reset_peak(self) -> None:
        with self.failures():
            self.can.reset_peak(self.device)

    def release_cached(self) -> None:
        with self.failures():
            self.can.release()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self.failures(prod(shape) * dtype.itemsize):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def in_place(self, tensor: Tensor) -> Tensor:
        with self.failures():
            return self.can.in_place(tensor, self.device)

    def products(self, storage: Storage) -> DeviceProducts | None:
        return self._products.of(storage)

    def listed(self, storage: Storage) -> ListedProducts | None:
        return self._products.kernels(storage)

    def pinned(self, nbytes: int) -> Tensor:
        return self.can.pinned(nbytes, self.device)

    def stream(self) -> CardStream:
        return CardStream(self)

    def event(self) -> CardEvent:
        return CardEvent(self)

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        assert isinstance(stream, CardStream)
        into, out = dst.view(-1).view(torch.uint8), src.view(-1).view(torch.uint8)
        with self.failures(), stream.entered():
            for start in range(0, dst.nbytes, COPY_PIECE):
                end = start + COPY_PIECE
                into[start:end].copy_(out[start:end], non_blocking=self.can.streams)

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        with self.failures():
            work()

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, CardEvent)
        event.hold(self.current())

    def record(self, event: DeviceEvent) -> None:
        event.record(None)

    def settle(self) -> None:
        """No-op: torch calls are ordered by the same stream."""

    def to_host(self, tensor: Tensor) -> CardHostCopy:
        return CardHostCopy(self, tensor)

    def to_device(self, tensor: Tensor) -> Tensor:
        with self.failures(tensor.nbytes):
            if not self.can.streams:
                return tensor.to(self.device)
            staged = tensor if tensor.is_pinned() else tensor.pin_memory()
            return staged.to(self.device, non_blocking=True)

    def together_to_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with self.failures(sum(one.nbytes for one in tensors)):
            whole = laid_together(tensors, pinned=self.can.streams)
            return taken_apart(whole.to(self.device, non_blocking=self.can.streams), tensors)

    def captured(
        self, work: Work, inputs: Sequence[Tensor], beside: Replay | None = None, back: Tensor | None = None
    ) -> Replay | None:
        if self.can.graph() is None:
            return None
        there, held = [self._own_copy(one) for one in inputs], None if back is None else self._own_copy(back)
        # Always the same stream, because libraries keep a workspace for each stream.
        self._captures = self._captures or self.stream()
        self.synchronize()
        # Run once before, because libraries initialise things that must not be captured.
        try:
            with self._captures.entered(), self.can.without_waits():
                work(lambda x: x if held is None else held, *there)
        finally:
            self.synchronize()  # its results are used on another stream, also after a failure
        self.release_cached()
        free = self.memory().untouched
        with self._captures.entered():
            parts = Recording(self._begun, None if beside is None else beside.pool, held).of(work, there)
        return Replay(parts, there, held, self._put, max(0, free - self.memory().untouched))

    def _begun(self, pool: Pool) -> Graph:
        graph: Graph = self.can.graph()
        self.can.begin(graph, pool)
        return graph

    def _own_copy(self, tensor: Tensor) -> Tensor:
        if tensor.device != self.device:
            return self.to_device(tensor)
        with self.failures(tensor.nbytes):
            return tensor.clone()

    def _put(self, there: Tensor, value: Tensor) -> None:
        with self.failures():
            there.copy_(value if value.device == self.device else value.pin_memory(), non_blocking=True)

    def synchronize(self) -> None:
        with self.failures():
            torch.accelerator.synchronize(self.device)

    def close(self) -> None:
        self.release_cached()


def failure_of(name: str, error: RuntimeError) -> HeteGenError | None:
    """Return the error of the device that a torch error stands for; None if it is not the device's."""
    text = str(error)
    if any(words in text for words in FULL):
        return out_of_memory(name)
    if any(words in text for words in NO_CODE):
        return not_supported(name)
    return device_lost(name) if isinstance(error, torch.AcceleratorError) or any(w in text for w in LOST) else None
