"""A graphics card through torch.cuda: NVIDIA, and AMD by ROCm, which has the same interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod

import torch
from torch import Tensor

from core.accelerators.base import DeviceEvent, Memory, Stream, cannot_pin, device_lost, not_supported, out_of_memory
from core.accelerators.host_bytes import host_bytes
from core.errors import HeteGenError
from core.spec import COPY_PIECE

PAGE = 4096
# cudaHostRegisterPortable, and the answer that all is well.
PORTABLE, SUCCESS = 1, 0
# cuBLAS takes memory of its own when it is first used; torch tells of its failure by a plain RuntimeError.
FULL = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


class CudaEvent:
    """Waiting for it sleeps: a thread that spins would take a core from those that compute."""

    def __init__(self, device: CudaAccelerator) -> None:
        self._device = device
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def record(self, stream: Stream | None = None) -> None:
        assert stream is None or isinstance(stream, CudaStream)
        with self._device.failures():
            self._event.record(self._device.current() if stream is None else stream.raw)

    def query(self) -> bool:
        with self._device.failures():
            return bool(self._event.query())  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        with self._device.failures():
            self._event.synchronize()

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let this stream wait for the event."""
        with self._device.failures():
            stream.wait_event(self._event)


class CudaStream:
    def __init__(self, device: CudaAccelerator) -> None:
        self._device = device
        with device.failures():
            self.raw = torch.cuda.Stream(device.device)  # type: ignore[no-untyped-call]

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, CudaEvent)
        event.hold(self.raw)

    def synchronize(self) -> None:
        with self._device.failures():
            self.raw.synchronize()


class CudaHostCopy:
    def __init__(self, device: CudaAccelerator, tensor: Tensor) -> None:
        self._device = device
        with device.failures():
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            # Waited for at every divided linear, for some microseconds: to wake up would take longer than to spin.
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(device.current())

    def result(self) -> Tensor:
        with self._device.failures():
            self._arrived.synchronize()
        return self._host


class CudaAccelerator:
    """One card. What is launched goes to torch's current stream, as the model's own operations do."""

    shares_cores = False

    def __init__(self, index: int = 0) -> None:
        self.name = f"cuda:{index}"
        self.device = torch.device("cuda", index)
        with self.failures():
            torch.cuda.init()  # type: ignore[no-untyped-call]

    @contextmanager
    def failures(self, wanted: int | None = None) -> Iterator[None]:
        """Turns torch's errors into NotEnoughMemory and DeviceLost."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.name, wanted, max(0, self.memory().free)) from error
        except RuntimeError as error:
            if (failure := failure_of(self.name, error)) is None:
                raise
            raise failure from error

    def current(self) -> torch.cuda.Stream:
        """The stream of what is launched."""
        return torch.cuda.current_stream(self.device)

    def memory(self) -> Memory:
        with self.failures():
            free, total = torch.cuda.mem_get_info(self.device)
            used = torch.cuda.memory_allocated(self.device)
            # What torch keeps for later is ours to use, though the driver counts it as taken.
            free += torch.cuda.memory_reserved(self.device) - used
            peak = torch.cuda.max_memory_reserved(self.device)
        return Memory(free, total, used, peak)

    def limit(self, cap: int | None) -> None:
        with self.failures():
            total = torch.cuda.mem_get_info(self.device)[1]
            fraction = 1.0 if cap is None else min(1.0, cap / total)
            torch.cuda.set_per_process_memory_fraction(fraction, self.device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def release_cached(self) -> None:
        with self.failures(), torch.cuda.device(self.device):
            torch.cuda.empty_cache()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self.failures(prod(shape) * dtype.itemsize):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def pinned(self, nbytes: int) -> Tensor:
        # torch's own pinned memory is rounded up to a power of two: pages of exactly this size are locked instead.
        address: list[int] = []
        host = host_bytes(nbytes, PAGE, lambda _: _unlock(address))
        length = -(-nbytes // PAGE) * PAGE
        if int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), length, PORTABLE)) != SUCCESS:  # type: ignore[no-untyped-call]
            self._forget_error()
            raise cannot_pin(nbytes)
        address.append(host.data_ptr())
        return host

    def _forget_error(self) -> None:
        # A call to the runtime that failed is reported again by the next operation, whatever that is.
        with suppress(torch.AcceleratorError):
            torch.zeros(1, device=self.device)

    def stream(self) -> CudaStream:
        return CudaStream(self)

    def event(self) -> CudaEvent:
        return CudaEvent(self)

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        assert isinstance(stream, CudaStream)
        into, out = dst.view(-1).view(torch.uint8), src.view(-1).view(torch.uint8)
        with self.failures(), torch.cuda.stream(stream.raw):
            for start in range(0, dst.nbytes, COPY_PIECE):
                end = start + COPY_PIECE
                into[start:end].copy_(out[start:end], non_blocking=True)

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        with self.failures():
            work()

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, CudaEvent)
        event.hold(self.current())

    def record(self, event: DeviceEvent) -> None:
        event.record(None)

    def settle(self) -> None:
        """Nothing to do: torch calls follow on the same stream."""

    def to_host(self, tensor: Tensor) -> CudaHostCopy:
        return CudaHostCopy(self, tensor)

    def to_device(self, tensor: Tensor) -> Tensor:
        with self.failures(tensor.nbytes):
            staged = tensor if tensor.is_pinned() else tensor.pin_memory()
            return staged.to(self.device, non_blocking=True)

    def synchronize(self) -> None:
        with self.failures():
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        self.release_cached()


def failure_of(name: str, error: RuntimeError) -> HeteGenError | None:
    """What an error of torch means for the device; None where it is not the device's."""
    text = str(error)
    if any(words in text for words in FULL):
        return out_of_memory(name)
    if not isinstance(error, torch.AcceleratorError):
        return None
    return not_supported(name) if "no kernel image" in text else device_lost(name)


def _unlock(address: list[int]) -> None:
    if address:
        torch.cuda.cudart().cudaHostUnregister(address[0])  # type: ignore[no-untyped-call]
