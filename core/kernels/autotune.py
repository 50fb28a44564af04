"""Times the candidate kernels on this machine by storage, shape and number of input rows; keeps the results as records.

The table is plain data: `hardware.profile` stores it with the machine's profile and `doctor` prints it. A shape that
was not timed uses the nearest timed shape of its storage; without any timing, the order of the candidates decides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any, cast

import torch

from core.kernels.large_pages import empty_on_large_pages
from core.kernels.matmul import NATIVE, Kernel, kernels_for
from core.kernels.native_abi import instruction_sets
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight, empty
from core.spec import BUCKET_NAMES, BUCKET_TIMED, FEW, LAYOUTS, Storage

MOST_ROWS = 4096
"""Weights are timed with at most this many rows; beyond it, time grows in proportion to rows."""
WORTHWHILE = 0.95
"""A later candidate must take less than this fraction of the best time to win; a smaller difference is noise."""
FROM_OURS = 0.85
"""The same threshold where the best is our library, for other instruction sets of it and, with few rows of input, for
anything else. It is stricter because a layer runs as one native call only where all of its weights use one library."""
ROUNDS = 15
"""Where memory's rate changes from moment to moment, a median of five runs chose the slower of two candidates."""
HOPELESS = 3.0
"""A candidate is dropped once its fastest run exceeds the fastest run of any other by this factor."""
FEWEST_RUNS, LONG_S = 2, 0.05
"""A candidate is not timed again after more than FEWEST_RUNS runs that together took longer than LONG_S seconds."""
WAKING_S = 0.2
COLD_BYTES = 96 << 20
COPIES = 32
"""Maximum number of weight copies that are cycled through so that each run reads from memory, not from the cache."""


@dataclass(frozen=True)
class Timing:
    """Seconds that one candidate took for a `rows` x `columns` weight with the input rows of bucket `bucket`."""

    storage: str
    rows: int
    columns: int
    bucket: int
    candidate: str
    seconds: float


@dataclass(frozen=True)
class KernelTable:
    """All timings made on this machine with `threads` threads and these instruction sets."""

    threads: int
    instructions: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = field(default=())

    def names(self, storage: str, rows: int, columns: int) -> tuple[str, ...]:
        """Return the candidate to use in each bucket for a weight of this shape; empty if the storage was never
        timed."""
        nearest = self._nearest(storage, _timed_rows(rows), columns)
        return tuple(self._best(nearest, b) for b in range(len(BUCKET_NAMES))) if nearest else ()

    def rate(self, storage: str, rows: int, columns: int, bucket: int) -> float | None:
        """Return the best candidate's rate in weight elements (rows x columns) per second; None if nothing was
        timed."""
        times = [t for t in self._nearest(storage, _timed_rows(rows), columns) if t.bucket == bucket]
        best = min(times, key=lambda t: t.seconds, default=None)
        return best.rows * best.columns / best.seconds if best else None

    def has(self, storage: str, rows: int, columns: int) -> bool:
        """Return whether exactly this shape, or one that is timed like it, was timed."""
        wanted = (storage, _timed_rows(rows), columns)
        return any((t.storage, t.rows, t.columns) == wanted for t in self.timings)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON data for `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> KernelTable:
        """Build a table from the result of `to_json`. Raises KeyError or TypeError for anything else."""
        timings = tuple(Timing(**timing) for timing in data["timings"])
        return KernelTable(int(data["threads"]), tuple(data["instructions"]), timings)

    def _nearest(self, storage: str, rows: int, columns: int) -> list[Timing]:
        own = [t for t in self.timings if t.storage == storage]
        if not own:
            return []
        best = min(own, key=lambda t: _distance(t, rows, columns))
        return [t for t in own if (t.rows, t.columns) == (best.rows, best.columns)]

    @staticmethod
    def _best(timings: Sequence[Timing], bucket: int) -> str:
        """Return the first candidate that no later one beats by more than the noise threshold."""
        times = [t for t in timings if t.bucket == bucket]
        best = times[0]
        for timing in times[1:]:
            from_ours = best.candidate.startswith(NATIVE) and (bucket <= FEW or timing.candidate.startswith(NATIVE))
            if timing.seconds < best.seconds * (FROM_OURS if from_ours else WORTHWHILE):
                best = timing
        return best.candidate


def usable(table: KernelTable | None) -> bool:
    """Return whether the table was made with the current thread count and instruction sets."""
    return table is not None and (table.threads, table.instructions) == (torch.get_num_threads(), instruction_sets())


def measure(shapes: Iterable[tuple[str, int, int]], known: KernelTable | None = None) -> KernelTable:
    """Time every candidate for the (storage, rows, columns) missing from `known`; return a table with old and new."""
    before = known.timings if known is not None and usable(known) else ()
    table = KernelTable(torch.get_num_threads(), instruction_sets(), before)
    wanted = dict.fromkeys((storage, _timed_rows(rows), columns) for storage, rows, columns in shapes)
    missing = [shape for shape in wanted if not table.has(*shape)]
    if not missing:
        return table
    memory = empty_on_large_pages((COLD_BYTES,), torch.uint8).fill_(60)
    made = [timing for shape in missing for timing in _time_shape(*shape, memory)]
    return KernelTable(table.threads, table.instructions, (*before, *made))


def _time_shape(storage: str, rows: int, columns: int, memory: torch.Tensor) -> Iterator[Timing]:
    weights = list(_weights(storage, rows, columns, memory))
    _wake(kernels_for(storage)[0], weights)
    for index, m in enumerate(BUCKET_TIMED):
        x = torch.randn(m, columns, dtype=torch.bfloat16)
        fitting = [offer for offer in kernels_for(storage) if offer.most_rows >= m]
        for offer, seconds in zip(fitting, median_times(fitting, weights, x), strict=True):
            yield Timing(storage, rows, columns, index, offer.name, seconds)


def _wake(offer: Kernel, weights: Sequence[QuantizedWeight]) -> None:
    """Run products until the system has moved each thread to its own core: the first matmuls take twice as long."""
    x, until = torch.ones(1, weights[0].shape[1], dtype=torch.bfloat16), time.perf_counter() + WAKING_S
    for weight in cycle(weights):
        if time.perf_counter() > until:
            return
        offer.compute(weight, HostInput(x), 0, weight.shape[0])


def median_times(candidates: Sequence[Kernel], weights: Sequence[QuantizedWeight], x: torch.Tensor) -> list[float]:
    """Return the median seconds of each candidate for x (M, K), run round-robin so that other load hits all alike.

    Each timed run follows an untimed one of the same candidate: after another library's kernels the threads sleep, and
    the candidate that came first seemed a tenth slower.
    """
    times: list[list[float]] = [[] for _ in candidates]
    # Rotate through copies: with a single weight, the first candidate would read it from memory, the rest from cache.
    cold = cycle(weights)
    for _ in range(ROUNDS):
        for offer, own in zip(candidates, times, strict=True):
            if own and min(own) > HOPELESS * min(min(other) for other in times if other):
                continue
            if len(own) > FEWEST_RUNS and sum(own) > LONG_S:
                continue
            offer.compute(next(cold), HostInput(x), 0, weights[0].shape[0])  # wakes this candidate's threads
            start = time.perf_counter()
            offer.compute(next(cold), HostInput(x), 0, weights[0].shape[0])
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _weights(storage: str, rows: int, columns: int, memory: torch.Tensor) -> Iterator[QuantizedWeight]:
    """Yield weights at distinct addresses, so that none is cached when its turn comes; their values do not matter."""
    row_bytes = _row_bytes(storage, columns)
    for number in range(max(1, min(COPIES, len(memory) // (rows * row_bytes)))):
        start = number * rows * row_bytes
        data = memory[start : start + rows * row_bytes]
        if data.numel() < rows * row_bytes:
            data = torch.full((rows * row_bytes,), 60, dtype=torch.uint8)
        yield _weight(storage, rows, columns, data.view(rows, row_bytes))


def _row_bytes(storage: str, columns: int) -> int:
    layout = LAYOUTS.get(cast(Storage, storage))
    if layout is not None:
        return layout.columns(columns) * layout.bits // 8
    return columns * (4 if storage == "fp32" else 2)


def _weight(storage: str, rows: int, columns: int, data: torch.Tensor) -> QuantizedWeight:
    if storage in LAYOUTS:
        like = empty(storage, rows, columns)
        assert like.scales is not None
        return QuantizedWeight(like.format, like.shape, data.view(like.data.dtype), like.scales.fill_(1))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return QuantizedWeight("bf16", (rows, columns), data.view(dtypes[storage]))


def _timed_rows(rows: int) -> int:
    return min(rows, MOST_ROWS)


def _distance(timing: Timing, rows: int, columns: int) -> float:
    return abs(timing.rows - rows) / max(rows, 1) + abs(timing.columns - columns) / max(columns, 1)
