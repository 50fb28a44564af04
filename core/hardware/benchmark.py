"""Measures this machine: memory, the CPU's kernels, each GPU and its link, alone and concurrently.

Times the kernels that inference runs, on cache-cold data. Takes a few seconds in all.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from core.accelerators.base import PINNED, Accelerator
from core.errors import NotEnoughMemory
from core.hardware.call_overhead import DeviceOverheads, Overheads
from core.hardware.workloads import (
    COLD_BYTES,
    COLUMNS,
    COPY_BYTES,
    ROWS,
    CpuLoad,
    DeviceLoad,
    LinkLoad,
    after,
    seconds_of,
    weight_of,
)
from core.kernels.autotune import KernelTable, measure
from core.kernels.matmul import host_matmul
from core.offload.host_weight import DeviceRows, HostWeight
from core.offload.parameter_manager import copied_rows
from core.spec import (
    AT_ONCE,
    BUCKET_LIMITS,
    BUCKET_TIMED,
    FEW,
    NO_TRIAL,
    Abilities,
    KernelRate,
    Link,
    Storage,
    row_bytes,
)
from core.units import MIB

STORAGES: tuple[Storage, ...] = ("bf16", "int8", "int4", "fp32", "fp16")
RARE: tuple[Storage, ...] = ("fp16", "fp32")
"""Timed with a quarter of the rows: few models are stored so, and their kernels can be very slow."""
READ_BYTES, READ_PARTS = 256 * MIB, 16
ROUNDS = 6
"""How often each weight is multiplied with a single row."""
MOST_FEW = BUCKET_LIMITS[FEW]
FEW_TIMED = (1, 2, 4, AT_ONCE, MOST_FEW)
"""Numbers of input rows from which the cost of a further row is measured."""
SLOT_BYTES, SMALL_SLOT_BYTES = 8 * MIB, MIB
COPIERS, NEARLY_BEST = (1, 2, 4), 1.1
TOGETHER_S = 0.4
WAKING_S = 0.1
"""Warm-up until the system has moved each thread to its own core: a process's first matmuls take twice as long."""
ENOUGH_S = 4.0
LONG_S = 0.5
"""Work that takes this long is not repeated: the slower first calls of a kernel are then a small part of it."""


@dataclass(frozen=True)
class CpuRates:
    """The measured rates of a `spec.Cpu`, and which kernels won."""

    threads: int
    read_bytes_s: float
    rates: tuple[KernelRate, ...]
    call_s: float
    layer_s: float
    score_s: float
    run_s: float
    pass_s: float
    state_s: float
    table: KernelTable


@dataclass(frozen=True)
class GpuRates:
    """The measured rates of a `spec.Gpu`."""

    bytes_s: float
    flops: float
    rates: tuple[KernelRate, ...]
    link: Link
    cpu_under_copy: float
    link_under_cpu: float
    launch_s: float
    layer_s: float
    graphs: bool = False
    lists_weights: bool = False
    replay_saves: float = 0.0
    in_place: bool = False
    cpu_beside: float = 1.0
    gpu_beside: float = 1.0
    abilities: Abilities = NO_TRIAL


def measure_cpu() -> CpuRates:
    """Measure the CPU's rates with torch's current number of threads."""
    table = KernelTable(torch.get_num_threads())
    overheads = _overheads(table)
    call_s, layer_s, score_s = overheads.call_s(), overheads.layer_s(), overheads.score_s()
    run_s, pass_s, state_s = overheads.run_s(), overheads.pass_s(), overheads.state_s()
    deadline = time.monotonic() + ENOUGH_S
    measured: list[Storage] = []
    for storage in STORAGES:
        if storage in RARE and time.monotonic() > deadline:
            break  # a busy or slow machine: the planner estimates what is missing
        table = measure([(storage, ROWS // 4 if storage in RARE else ROWS, COLUMNS)], table)
        measured.append(storage)
    rates = _cpu_rates(table, measured, call_s)
    # Reading is at least as fast as the fastest kernel: both are limited by the memory.
    read = max(_read_rate(), *(rate.bytes_s for rate in rates))
    return CpuRates(table.threads, read, rates, call_s, layer_s, score_s, run_s, pass_s, state_s, table)


def present_paces(table: KernelTable, rates: Sequence[KernelRate], call_s: float) -> dict[Storage, float]:
    """Return the CPU's current speed relative to the measured rates, for each common storage: compute-intensive ones
    suffer less from slow memory. Takes about 0.4 s."""
    common = [rate for rate in rates if rate.storage not in RARE]
    one_row = _one_row_s([CpuLoad(table, rate.storage, COLD_BYTES // 2) for rate in common])
    return {
        rate.storage: ROWS * row_bytes(rate.storage, COLUMNS) / (seconds - call_s) / rate.bytes_s
        for rate, seconds in zip(common, one_row, strict=True)
    }


def measure_gpu(accelerator: Accelerator, cpu: CpuRates) -> GpuRates:
    """Measure one GPU, and its interference with the CPU. Raises NotEnoughMemory, DeviceLost."""
    # A simulated GPU on the CPU's cores runs the CPU's kernels.
    rates = (
        cpu.rates if accelerator.shares_cores else tuple(_device_rate(accelerator, one, cpu.table) for one in STORAGES)
    )
    copiers = _copiers(accelerator, cpu.threads)
    link, work = LinkLoad(accelerator, SLOT_BYTES, copiers), CpuLoad(cpu.table, "bf16")
    piece_s, whole_s = _piece_s(accelerator, link, copiers), link.seconds()
    # A thread that was held up while the small pieces were timed must not make the rate negative.
    alone = COPY_BYTES / max(whole_s - link.chunks * piece_s, whole_s / 2)
    before = work.rate(TOGETHER_S / 2)
    copying, computing = _together(link, work)
    link.close()
    overheads = _overheads(cpu.table).of_device(accelerator)
    return GpuRates(
        bytes_s=max(rate.bytes_s for rate in rates),
        flops=max(rate.flops[3] for rate in rates),
        rates=rates,
        link=_link(accelerator, alone, piece_s, copiers, overheads),
        cpu_under_copy=_part(computing, before),
        link_under_cpu=_part(copying, alone),
        launch_s=overheads.launch_s,
        layer_s=overheads.layer_s,
        lists_weights=accelerator.listed("int4") is not None,
    )


def measure_beside(accelerator: Accelerator, table: KernelTable) -> tuple[float, float]:
    """Return the fractions of the CPU's and of the GPU's rate that remain while both multiply, as they share the
    memory's bandwidth. Raises NotEnoughMemory, DeviceLost."""
    there, here = DeviceLoad(accelerator), CpuLoad(table, "bf16")
    alone, before = there.rate(after(TOGETHER_S / 2)), here.rate(TOGETHER_S / 2)
    beside, computing = _together(there, here)
    return _part(computing, before), _part(beside, alone)


class Neighbours:
    """The CPU share used by other processes since construction; it makes measured rates too low."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Return the fraction (0-1) of all cores' time."""
        busy, own, elapsed = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, busy - own) / (elapsed * (psutil.cpu_count() or 1)) if elapsed else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        system, process = psutil.cpu_times(), psutil.Process().cpu_times()
        waiting = system.idle + getattr(system, "iowait", 0.0)
        return sum(system[:8]) - waiting, process.user + process.system, time.monotonic()


def _rate_of(storage: Storage, seconds: Sequence[float]) -> KernelRate:
    """Return the rate from the times of the reference weight in each bucket, and with MOST_FEW rows."""
    operations = [2.0 * m * ROWS * COLUMNS for m in (*BUCKET_TIMED, MOST_FEW)]
    one, few, some, many, most = (count / taken for count, taken in zip(operations, seconds, strict=True))
    return KernelRate(storage, ROWS * row_bytes(storage, COLUMNS) / seconds[0], (one, few, some, many), most)


def _cpu_rates(table: KernelTable, storages: Sequence[Storage], call_s: float) -> tuple[KernelRate, ...]:
    """Return rates without the call overhead, which is accounted for separately."""
    loads = {storage: CpuLoad(table, storage, COLD_BYTES // 2) for storage in storages}
    one_row = _one_row_s(tuple(loads.values()))
    found = []
    for (storage, load), seconds in zip(loads.items(), one_row, strict=True):
        row, rest = further_rows_s(load)
        few, most = seconds + (BUCKET_TIMED[FEW] - 1) * row, seconds + rest
        many = [load.seconds_each(m) for m in BUCKET_TIMED[FEW + 1 :]]
        found.append(_rate_of(storage, [taken - call_s for taken in (seconds, few, *many, most)]))
    return tuple(found)


def further_rows_s(load: CpuLoad) -> tuple[float, float]:
    """Return the seconds that further rows of input add to one weight's time: each one, on average up to AT_ONCE rows,
    and all of MOST_FEW rows together.

    Alternates between the numbers of rows, because the memory bandwidth varies more over time than they differ.
    """
    products = [load.products(m) for m in FEW_TIMED]
    taken: list[list[float]] = [[] for _ in FEW_TIMED]
    for turn in range(len(FEW_TIMED)):
        for number in range(len(products[0])):
            which = (number + turn) % len(FEW_TIMED)
            taken[which].append(seconds_of(products[which][number]))
    one, *more, most = map(statistics.median, taken)
    rows = [(seconds - one) / (m - 1) for seconds, m in zip(more, FEW_TIMED[1:-1], strict=True)]
    return max(0.0, statistics.mean(rows)), max(0.0, most - one)


def _one_row_s(loads: Sequence[CpuLoad]) -> list[float]:
    """Return the median seconds of one product per load, run round-robin: memory bandwidth fluctuates, and the storages
    are compared with each other."""
    loads[0].rate(WAKING_S)
    taken: list[list[float]] = [[] for _ in loads]
    for _ in range(ROUNDS):
        for load, times in zip(loads, taken, strict=True):
            times += map(seconds_of, load.products())
    return [statistics.median(times) for times in taken]


def _read_rate() -> float:
    parts = torch.ones(READ_BYTES // 4).chunk(READ_PARTS)
    return READ_BYTES / READ_PARTS / _quiet([part.sum for part in parts] * 3)


def _best(work: Callable[[], object], times: int) -> float:
    """Return the shortest of several runs: other work can only add time."""
    return min(seconds_of(work) for _ in range(times))


def _quiet(works: Sequence[Callable[[], object]]) -> float:
    """Return the first decile of the times of equal pieces of work: a quiet moment, but not an outlier."""
    return statistics.quantiles([seconds_of(work) for work in works], n=10)[0]


def _overheads(table: KernelTable) -> Overheads:
    products = itertools.cycle(CpuLoad(table, "bf16", COLD_BYTES // 2).products())
    return Overheads(lambda: next(products)())


def _device_rate(accelerator: Accelerator, storage: Storage, table: KernelTable) -> KernelRate:
    # Several weights, so that the GPU's cache does not hold the next one.
    weights = [
        _on_device(HostWeight(host_matmul(one, table.names(storage, *one.shape))), accelerator)
        for one in (weight_of(storage) for _ in range(4))
    ]
    dtype = weights[0].weight.data.dtype if storage in ("bf16", "fp16", "fp32") else torch.bfloat16
    taken = []
    for m in (*BUCKET_TIMED, MOST_FEW):
        x = torch.ones((m, COLUMNS), dtype=dtype, device=accelerator.device)
        taken.append(_device_seconds(accelerator, weights, x))
    return _rate_of(storage, taken)


def _on_device(host: HostWeight, accelerator: Accelerator) -> DeviceRows:
    buffer = accelerator.empty((host.rows * host.row_bytes,), torch.uint8)
    return copied_rows(accelerator, accelerator.stream(), host, 0, host.rows, buffer)


def _device_seconds(accelerator: Accelerator, weights: Sequence[DeviceRows], x: Tensor) -> float:
    def all_once() -> None:
        for weight in weights:
            accelerator.launch(lambda weight=weight: weight.linear(x), weight.weight.nbytes)  # type: ignore[misc]
        accelerator.synchronize()

    first_s = seconds_of(all_once)
    return (_best(all_once, 5) if first_s < LONG_S else first_s) / len(weights)


def _piece_s(accelerator: Accelerator, link: LinkLoad, copiers: int) -> float:
    """Return the cost per piece of cutting the same bytes into more pieces."""
    small = LinkLoad(accelerator, SMALL_SLOT_BYTES, copiers)
    more, seconds = small.chunks - link.chunks, small.seconds() - link.seconds()
    small.close()
    return max(0.0, seconds) / more


def _copiers(accelerator: Accelerator, threads: int) -> int:
    """Return the smallest number of threads that fill the ring nearly fastest: each takes a core from computing."""
    taken: dict[int, float] = {}
    for count in (count for count in COPIERS if count == 1 or count <= threads // 4):
        load = LinkLoad(accelerator, SLOT_BYTES, count)
        taken[count] = load.seconds()
        load.close()
    return next(count for count, seconds in taken.items() if seconds <= NEARLY_BEST * min(taken.values()))


def _link(accelerator: Accelerator, staged: float, piece_s: float, copiers: int, overheads: DeviceOverheads) -> Link:
    pageable, locked = torch.ones(COPY_BYTES, dtype=torch.uint8), _locked(accelerator)
    there = accelerator.empty((COPY_BYTES,), torch.uint8)
    stream = accelerator.stream()

    def rate(dst: Tensor, src: Tensor) -> float:
        def copy() -> None:
            accelerator.copy_async(dst, src, stream)
            stream.synchronize()

        return COPY_BYTES / _best(copy, 3)

    return Link(
        h2d_pinned=rate(there, pageable if locked is None else locked),
        h2d_pageable=rate(there, pageable),
        d2h_pinned=rate(pageable if locked is None else locked, there),
        d2h_pageable=rate(pageable, there),
        staged=staged,
        sync_s=overheads.sync_s,
        back_s=overheads.back_s,
        piece_s=piece_s,
        lockable=locked is not None,
        copiers=copiers,
    )


def _locked(accelerator: Accelerator) -> Tensor | None:
    """Return pinned memory to copy from; None if the system grants none."""
    try:
        return accelerator.pinned(COPY_BYTES).fill_(1)
    except NotEnoughMemory as error:
        if error.device != PINNED:
            raise
        return None


def _together(other: LinkLoad | DeviceLoad, work: CpuLoad) -> tuple[float, float]:
    """Return bytes per second of the link or the device, and of the CPU, while both work."""
    stop = threading.Event()
    copied: list[float] = []
    thread = threading.Thread(target=lambda: copied.append(other.rate(stop.is_set)), daemon=True)
    thread.start()
    computed = work.rate(TOGETHER_S)
    stop.set()
    thread.join()
    return copied[0] if copied else 0.0, computed


def _part(together: float, alone: float) -> float:
    """Return the remaining fraction of a rate, clamped to plausible values."""
    return min(1.0, max(0.2, together / alone)) if alone else 1.0
