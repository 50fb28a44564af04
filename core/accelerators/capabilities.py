"""What differs between the makers of graphics cards, as one table by torch's name of the device.

torch speaks to all of them by the same calls (`torch.accelerator`, streams, events); here is what it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.accelerators.base import Memory, cannot_pin
from core.accelerators.host_bytes import host_bytes

PAGE = 4096
# cudaHostRegisterPortable, and the answer that all is well.
PORTABLE, SUCCESS = 1, 0


def no_graph() -> None:
    """No-op: the device has no graphs."""


def begin_capture(graph: Any) -> None:
    """Start a capture on the current stream."""
    graph.capture_begin()


@dataclass(frozen=True)
class Capabilities:
    """What one maker's devices can do.

    `memory` and `limit` (to a fraction of all memory) ask and tell the allocator; `pinned` locks exactly so many bytes.
    `streams`: copies have queues of their own and run beside the host; without, they follow what was launched and are
    waited for. `own_kernels`: device.cu can be compiled for it. `graph`: makes an empty graph, None if there are
    none; `begin` starts a capture on the current stream; inside `without_waits` synchronising with the device fails.
    """

    memory: Callable[[torch.device], Memory]
    limit: Callable[[torch.device, float], None]
    pinned: Callable[[int, torch.device], Tensor]
    streams: bool = True
    own_kernels: bool = False
    graph: Callable[[], Any] = no_graph
    begin: Callable[[Any], None] = begin_capture
    without_waits: Callable[[], AbstractContextManager[None]] = nullcontext


def capabilities_of(device: torch.device) -> Capabilities:
    """Those of this kind of device; of one that the table does not name, what torch promises of all."""
    return TABLE.get(device.type, COMMON)


def has_unified_memory(device: torch.device) -> bool:
    """Whether the device computes in the processor's own memory: Apple's, and graphics built into a processor."""
    if device.type == "mps":
        return True
    properties = _properties(device)
    return bool(getattr(properties, "is_integrated", False) or getattr(properties, "is_integrated_gpu", False))


def name_of(device: torch.device) -> str:
    """What its maker calls it."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device.index)) if named else f"{device.type} device"


def _properties(device: torch.device) -> Any:
    asked = getattr(torch.get_device_module(device), "get_device_properties", None)
    return asked(device) if asked else None


# ---- what torch promises of every device


def common_memory(device: torch.device) -> Memory:
    """Memory as torch's allocator counts it."""
    free, total = torch.accelerator.get_memory_info(device)
    return counted(device, free, total)


def counted(device: torch.device, free: int, total: int) -> Memory:
    """What torch keeps for later is ours to use, though the driver counts it as taken."""
    used = torch.accelerator.memory_allocated(device)
    kept = torch.accelerator.memory_reserved(device) - used
    return Memory(free + kept, total, used, torch.accelerator.max_memory_reserved(device))


def common_limit(device: torch.device, fraction: float) -> None:
    """Let torch's allocator hold at most this fraction of the device's memory."""
    torch.get_device_module(device).set_per_process_memory_fraction(fraction, device)


def common_pinned(nbytes: int, device: torch.device) -> Tensor:
    """Memory (nbytes,) locked by torch's own allocator. Raises NotEnoughMemory(device='pinned')."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        raise cannot_pin(nbytes) from error


def common_graph() -> Any:
    """A graph by torch's device-independent API, None in versions without it. Raises RuntimeError for other devices."""
    make = getattr(torch.accelerator, "Graph", None)
    return None if make is None else make()


# ---- NVIDIA's, and AMD's by ROCm, which has the same interface


def registered(nbytes: int, device: torch.device) -> Tensor:
    """Pages (nbytes,) of exactly this size: torch's own pinned memory is rounded up to a power of two."""
    address: list[int] = []
    host = host_bytes(nbytes, PAGE, lambda _: _unregister(address))
    length = -(-nbytes // PAGE) * PAGE
    if int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), length, PORTABLE)) != SUCCESS:  # type: ignore[no-untyped-call]
        # A call to the runtime that failed is reported again by the next operation, whatever that is.
        with suppress(torch.AcceleratorError):
            torch.zeros(1, device=device)
        raise cannot_pin(nbytes)
    address.append(host.data_ptr())
    return host


def _unregister(address: list[int]) -> None:
    if address:
        torch.cuda.cudart().cudaHostUnregister(address[0])  # type: ignore[no-untyped-call]


def cuda_graph() -> Any:
    """A graph by torch's API for CUDA, which has no device-independent one (2.13)."""
    return torch.cuda.CUDAGraph()


def cuda_begin(graph: Any) -> None:
    """Start a capture that calls of other threads do not invalidate."""
    graph.capture_begin(capture_error_mode="thread_local")


@contextmanager
def cuda_without_waits() -> Iterator[None]:
    """Let synchronising operations raise, because a capture that fails leaves torch's allocator in capture mode."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# ---- Intel's


def xpu_memory(device: torch.device) -> Memory:
    """Graphics inside of a processor do not tell how much is free: then all that torch has not taken."""
    try:
        return common_memory(device)
    except RuntimeError:
        total = int(_properties(device).total_memory)
        return counted(device, total - torch.accelerator.memory_reserved(device), total)


# ---- Apple's


def mps_memory(device: torch.device) -> Memory:
    """Memory as Metal recommends to use it; the peak is not counted there."""
    used, taken = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
    total = torch.mps.recommended_max_memory()
    return Memory(total - used, total, used, taken)


def mps_limit(device: torch.device, fraction: float) -> None:
    """Let torch hold at most this fraction of the memory that Metal recommends."""
    torch.mps.set_per_process_memory_fraction(fraction)


def ordinary(nbytes: int, device: torch.device) -> Tensor:
    """Memory (nbytes,) that need not be locked for copies: the device shares it."""
    return torch.empty(nbytes, dtype=torch.uint8)


COMMON = Capabilities(common_memory, common_limit, common_pinned, graph=common_graph)
TABLE = {
    "cuda": Capabilities(
        common_memory,
        common_limit,
        registered,
        own_kernels=True,
        graph=cuda_graph,
        begin=cuda_begin,
        without_waits=cuda_without_waits,
    ),
    "xpu": Capabilities(xpu_memory, common_limit, common_pinned, graph=common_graph),
    "mps": Capabilities(mps_memory, mps_limit, ordinary, streams=False),
}
