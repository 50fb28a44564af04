"""The workloads for measuring: products and copies like those of a model, on data outside the caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from core.accelerators.base import Accelerator
from core.kernels.autotune import KernelTable
from core.kernels.large_pages import empty_on_large_pages
from core.kernels.matmul import host_matmul
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight, empty
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import ParameterManager, chunks_of
from core.spec import LAYOUTS, LinearPlan, Ring, Rows, Storage, row_bytes
from core.units import MIB

ROWS, COLUMNS = 2048, 4096
"""The size of the reference weight: as large as a layer's, small enough to be timed often."""
COPY_BYTES = 64 * MIB
COLD_BYTES = 192 * MIB
SLOTS, PASSES = 8, 4

Stops = Callable[[], bool]
"""Tells a load that runs beside another one to end."""


def weight_of(storage: Storage) -> QuantizedWeight:
    """Return a weight (ROWS, COLUMNS) with constant values: only its timing matters."""
    if storage in LAYOUTS:
        like = empty(storage, ROWS, COLUMNS)
        assert like.scales is not None
        data = filled(like.data.shape[1], like.data.dtype, 1 if like.data.dtype is torch.int8 else 0x99)
        return QuantizedWeight(storage, like.shape, data, like.scales.fill_(1))
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return QuantizedWeight("bf16", (ROWS, COLUMNS), filled(COLUMNS, dtypes[storage], 1))


def filled(columns: int, dtype: torch.dtype, value: int) -> Tensor:
    """Return (ROWS, columns), allocated like a model's weights."""
    return empty_on_large_pages((ROWS, columns), dtype).fill_(value)


class CpuLoad:
    """The CPU's part of decoding: cache-cold weights, multiplied repeatedly."""

    def __init__(self, table: KernelTable, storage: Storage, nbytes: int = COLD_BYTES) -> None:
        weights = [weight_of(storage)]
        names = table.names(storage, *weights[0].shape)
        weights += [weight_of(storage) for _ in range(nbytes // weights[0].nbytes)]
        self._matmuls = [host_matmul(weight, names) for weight in weights]

    def products(self, tokens: int = 1) -> list[Callable[[], object]]:
        """Return one product per weight with `tokens` rows of input."""
        x = torch.ones(tokens, COLUMNS, dtype=torch.bfloat16)
        return [lambda one=one: one(HostInput(x)) for one in self._matmuls]  # type: ignore[misc]

    def seconds_each(self, tokens: int) -> float:
        """Return the median seconds of one product with `tokens` rows of input, over a few weights."""
        return statistics.median(map(seconds_of, self.products(tokens)[:4]))

    def rate(self, seconds: float) -> float:
        """Return bytes per second over this time, with one row of input."""
        products, start, done = self.products(), time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            for product in products:
                product()
            done += sum(matmul.nbytes for matmul in self._matmuls)
        return done / taken


class LinkLoad:
    """The link's part of decoding: pageable weights through pinned buffers to the device, like streamed rows."""

    def __init__(self, accelerator: Accelerator, buffer_bytes: int, copiers: int = 1) -> None:
        # Distinct weights: a single one would be copied from the processor's cache.
        count = COPY_BYTES // (ROWS * row_bytes("bf16", COLUMNS))
        self._weights = {str(number): [HostWeight(host_matmul(weight_of("bf16")))] for number in range(count)}
        self._accelerator = accelerator
        self._manager = ParameterManager(accelerator, Ring(SLOTS, buffer_bytes, copiers), self._weights)
        away = Rows(0, ROWS, 0)
        plans = [LinearPlan(name, ROWS, (away, away, away, away)) for name in self._weights]
        self._chunks = [
            chunk for plan in plans for chunk in chunks_of(plan, 1, self._weights[plan.name][0], buffer_bytes)
        ]

    def seconds(self) -> float:
        """Return the seconds of copying COPY_BYTES."""
        # Fill the ring first: it is then as full at the beginning of the timing as at the end.
        self._pass()
        return sum(seconds_of(self._pass) for _ in range(PASSES)) / PASSES

    def rate(self, stops: Stops) -> float:
        """Return bytes per second until `stops` is true."""
        start, done = time.perf_counter(), 0
        while not stops():
            self._pass()
            done += COPY_BYTES
        return done / (time.perf_counter() - start)

    @property
    def chunks(self) -> int:
        """The number of pieces that COPY_BYTES are cut into."""
        return len(self._chunks)

    def close(self) -> None:
        """Free the memory."""
        self._manager.close()

    def _pass(self) -> None:
        self._manager.begin_pass(self._chunks)
        for chunk in self._chunks:
            if not self._manager.has_ready(chunk):
                self._accelerator.settle()
            with self._manager.take(chunk):
                self._accelerator.launch(lambda: None)
        self._accelerator.settle()


class DeviceLoad:
    """A device's part of decoding: weights in its memory, multiplied repeatedly."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Raises NotEnoughMemory, DeviceLost."""
        self._accelerator = accelerator
        shape = (COPY_BYTES // (2 * COLUMNS), COLUMNS)
        self._weight = accelerator.empty(shape, torch.bfloat16).fill_(1)
        self._x = accelerator.empty((1, COLUMNS), torch.bfloat16).fill_(1)

    def rate(self, stops: Stops) -> float:
        """Return bytes per second until `stops` is true."""
        start, done = time.perf_counter(), 0
        while not stops() or not done:
            self._accelerator.launch(lambda: F.linear(self._x, self._weight), self._weight.nbytes)
            self._accelerator.synchronize()
            done += self._weight.nbytes
        return done / (time.perf_counter() - start)


def after(seconds: float) -> Stops:
    """Return what is true once these seconds have passed."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
