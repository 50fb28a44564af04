"""The differences between the makers' devices, as a table by torch device type.

torch has a common API (`torch.accelerator`, streams, events); this covers the rest.
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
from core.accelerators.graph import Pool
from core.accelerators.host_bytes import host_bytes
from core.accelerators.in_place import by_address, by_metal

PAGE = 4096
# The flag cudaHostRegisterPortable, and the return code cudaSuccess.
PORTABLE, SUCCESS = 1, 0


def no_graph() -> None:
    """Return None: the device has no graphs."""


def begin_capture(graph: Any, pool: Pool) -> None:
    """Start a capture on the current stream, with memory of its own or of another graph's pool."""
    graph.graph_pool = pool
    graph.capture_begin()


def total_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory."""
    return int(_properties(device).total_memory)


@dataclass(frozen=True)
class Capabilities:
    """The capabilities of a type of device.

    `memory` and `limit` (a fraction of the total) query and limit the allocator, `release` gives cached memory back,
    `reset_peak` restarts its statistics; `total` is known without a context on the card, which takes memory and may
    fail. `pinned` locks exactly so many bytes. `streams`: copies have streams of their own and run asynchronously to
    the host; otherwise they follow launched work, and block. `own_kernels`: device.cu can be compiled for it. `graph`
    makes an empty graph, None if there are none; `begin` starts a capture on the current stream, in a pool of memory.
    Inside of `without_waits`, synchronising with the device raises an error. `in_place` makes a host tensor one of a
    device with unified memory, without a copy.
    """

    memory: Callable[[torch.device], Memory]
    limit: Callable[[torch.device, float], None]
    pinned: Callable[[int, torch.device], Tensor]
    total: Callable[[torch.device], int] = total_memory
    release: Callable[[], None] = torch.accelerator.empty_cache
    reset_peak: Callable[[torch.device], None] = torch.accelerator.reset_peak_memory_stats
    streams: bool = True
    own_kernels: bool = False
    graph: Callable[[], Any] = no_graph
    begin: Callable[[Any, Pool], None] = begin_capture
    without_waits: Callable[[], AbstractContextManager[None]] = nullcontext
    in_place: Callable[[Tensor, torch.device], Tensor] = by_address


def capabilities_of(device: torch.device) -> Capabilities:
    """Return the capabilities of this type of device; for types not in the table those that torch guarantees for
    all."""
    return TABLE.get(device.type, COMMON)


def has_unified_memory(device: torch.device) -> bool:
    """Return whether the device uses the CPU's memory: Apple GPUs and integrated graphics."""
    if device.type == "mps":
        return True
    properties = _properties(device)
    return bool(getattr(properties, "is_integrated", False) or getattr(properties, "is_integrated_gpu", False))


def name_of(device: torch.device) -> str:
    """Return the device's product name."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device.index)) if named else f"{device.type} device"


def _properties(device: torch.device) -> Any:
    asked = getattr(torch.get_device_module(device), "get_device_properties", None)
    return asked(device) if asked else None


# ---- common to all devices


def common_memory(device: torch.device) -> Memory:
    """Return memory as counted by torch's allocator."""
    free, total = torch.accelerator.get_memory_info(device)
    return counted(device, free, total)


def counted(device: torch.device, free: int, total: int) -> Memory:
    """Return memory figures in which torch's cached blocks count as free, although the driver counts them as used."""
    used = torch.accelerator.memory_allocated(device)
    kept = torch.accelerator.memory_reserved(device) - used
    return Memory(free + kept, total, used, torch.accelerator.max_memory_reserved(device), kept)


def common_limit(device: torch.device, fraction: float) -> None:
    """Limit torch's allocator to this fraction of the device's memory."""
    torch.get_device_module(device).set_per_process_memory_fraction(fraction, device)


def common_pinned(nbytes: int, device: torch.device) -> Tensor:
    """Allocate pinned memory (nbytes,) with torch's own allocator. Raises NotEnoughMemory(device='pinned')."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        raise cannot_pin(nbytes) from error


def common_graph() -> Any:
    """Make a graph with torch's device-independent API; None in versions without it. Raises RuntimeError if
    unsupported."""
    make = getattr(torch.accelerator, "Graph", None)
    return None if make is None else make()


# ---- NVIDIA, and AMD with ROCm, which has the same API


def registered(nbytes: int, device: torch.device) -> Tensor:
    """Pin pages of exactly this size (nbytes,): torch's pinned allocator rounds up to a power of two.

    Raises NotEnoughMemory(device='pinned').
    """
    address: list[int] = []
    host = host_bytes(nbytes, PAGE, lambda _: _unregister(address))
    length = -(-nbytes // PAGE) * PAGE
    if int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), length, PORTABLE)) != SUCCESS:  # type: ignore[no-untyped-call]
        # A failed call of the runtime is reported again by the next operation, whatever it is: let that happen here.
        with suppress(torch.AcceleratorError):
            torch.zeros(1, device=device)
        raise cannot_pin(nbytes)
    address.append(host.data_ptr())
    return host


def _unregister(address: list[int]) -> None:
    if address:
        torch.cuda.cudart().cudaHostUnregister(address[0])  # type: ignore[no-untyped-call]


def cuda_graph() -> Any:
    """Make a graph with torch's CUDA API; torch 2.13 has no device-independent one for CUDA."""
    return torch.cuda.CUDAGraph()


def cuda_begin(graph: Any, pool: Pool) -> None:
    """Start a capture that is not invalidated by calls of other threads."""
    graph.capture_begin(pool, capture_error_mode="thread_local")


@contextmanager
def cuda_without_waits() -> Iterator[None]:
    """Make synchronising operations raise, because a failed capture would leave torch's allocator in capture mode."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# ---- Intel


def xpu_memory(device: torch.device) -> Memory:
    """Return memory. What integrated graphics report as free is an error or nothing, depending on the driver: then all
    that torch has not reserved counts as free."""
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except RuntimeError:
        free, total = 0, total_memory(device)
    return counted(device, free or total - torch.accelerator.memory_reserved(device), total)


# ---- Apple, whose allocator and single stream do not take part in torch's common API (in torch 2.11 to 2.13 some calls
# end in an internal error)


def mps_memory(device: torch.device) -> Memory:
    """Return memory within Metal's recommended limit. Metal counts no peak; the driver's current total replaces it."""
    used, taken = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
    total = mps_total(device)
    return Memory(total - used, total, used, taken, taken - used)


def mps_total(device: torch.device) -> int:
    """Return the bytes that Metal recommends to use at most."""
    return int(torch.mps.recommended_max_memory())


def mps_release() -> None:
    """Return cached memory to the system."""
    torch.mps.empty_cache()


def mps_reset_peak(device: torch.device) -> None:
    """No-op: Metal counts no peak."""


def mps_limit(device: torch.device, fraction: float) -> None:
    """Limit torch to this fraction of the memory that Metal recommends."""
    torch.mps.set_per_process_memory_fraction(fraction)


def ordinary(nbytes: int, device: torch.device) -> Tensor:
    """Allocate ordinary memory (nbytes,): the device shares it, so that copies need no pinned memory."""
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
    "mps": Capabilities(
        mps_memory,
        mps_limit,
        ordinary,
        total=mps_total,
        release=mps_release,
        reset_peak=mps_reset_peak,
        streams=False,
        in_place=by_metal,
    ),
}
