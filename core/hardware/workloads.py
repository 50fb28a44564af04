"""The work that measuring times: products and copies such as a model makes, on data that no cache holds."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import torch
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
"""The weight that stands for others: as large as a layer's, small enough to be timed often."""
COPY_BYTES = 64 * MIB
COLD_BYTES = 192 * MIB
SLOTS, PASSES = 8, 4


def weight_of(storage: Storage) -> QuantizedWeight:
    """(ROWS, COLUMNS), all the same: only how long it takes counts."""
    if storage in LAYOUTS:
        like = empty(storage, ROWS, COLUMNS)
        assert like.scales is not None
        data = filled(like.data.shape[1], like.data.dtype, 1 if like.data.dtype is torch.int8 else 0x99)
        return QuantizedWeight(storage, like.shape, data, like.scales.fill_(1))
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return QuantizedWeight("bf16", (ROWS, COLUMNS), filled(COLUMNS, dtypes[storage], 1))


def filled(columns: int, dtype: torch.dtype, value: int) -> Tensor:
    """(ROWS, columns) in memory like that of a model's weights."""
    return empty_on_large_pages((ROWS, columns), dtype).fill_(value)


class CpuLoad:
    """The CPU's own part of decoding: weights that no cache holds, multiplied over and over."""

    def __init__(self, table: KernelTable, storage: Storage, nbytes: int = COLD_BYTES) -> None:
        weights = [weight_of(storage)]
        names = table.names(storage, *weights[0].shape)
        weights += [weight_of(storage) for _ in range(nbytes // weights[0].nbytes)]
        self._matmuls = [host_matmul(weight, names) for weight in weights]

    def products(self, tokens: int = 1) -> list[Callable[[], object]]:
        """One product of each weight with `tokens` rows of input."""
        x = torch.ones(tokens, COLUMNS, dtype=torch.bfloat16)
        return [lambda one=one: one(HostInput(x)) for one in self._matmuls]  # type: ignore[misc]

    def seconds_each(self, tokens: int) -> float:
        """Seconds of one weight with `tokens` rows of input: a few of them take long enough."""
        return statistics.median(map(seconds_of, self.products(tokens)[:4]))

    def rate(self, seconds: float) -> float:
        """Bytes per second over this time, with one row of input."""
        products, start, done = self.products(), time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            for product in products:
                product()
            done += sum(matmul.nbytes for matmul in self._matmuls)
        return done / taken


class LinkLoad:
    """The link's own part of decoding: pageable weights through pinned buffers to the device, as streamed rows go."""

    def __init__(self, accelerator: Accelerator, buffer_bytes: int, copiers: int = 1) -> None:
        # All different: one alone would be copied from the processor's cache.
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
        """Seconds of COPY_BYTES."""
        # What the ring holds already when timing begins, it holds when it ends.
        self._pass()
        return sum(seconds_of(self._pass) for _ in range(PASSES)) / PASSES

    def rate(self, stop: threading.Event) -> float:
        """Bytes per second until told to stop."""
        start, done = time.perf_counter(), 0
        while not stop.is_set():
            self._pass()
            done += COPY_BYTES
        return done / (time.perf_counter() - start)

    @property
    def chunks(self) -> int:
        """Into how many COPY_BYTES are cut."""
        return len(self._chunks)

    def close(self) -> None:
        """Give the memory back."""
        self._manager.close()

    def _pass(self) -> None:
        self._manager.begin_pass(self._chunks)
        for chunk in self._chunks:
            if not self._manager.has_ready(chunk):
                self._accelerator.settle()
            with self._manager.take(chunk):
                self._accelerator.launch(lambda: None)
        self._accelerator.settle()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
