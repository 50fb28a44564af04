"""Measures every kernel candidate on the linears of a model's shape, against the memory's read rate.

    python -m tests.bench.kernels [--shape llama-3.2-1b] [--rows 1,4,8,256] [--storage int8,int4,bf16]

Each line gives the median rate, in GB/s of weights (few rows of input) or GOP/s (many). The machine is shared, so the
memory's rate is measured in the same round. The last table adds up the linears of one token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from core.kernels.matmul import Kernel, kernels_for
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import Storage

# name: (outputs, inputs, number per model)
LINEARS = {
    "llama-3.2-1b": {
        "q, o": (2048, 2048, 32),
        "k, v": (512, 2048, 32),
        "gate, up": (8192, 2048, 32),
        "down": (2048, 8192, 16),
        "head": (128256, 2048, 1),
    },
    "qwen2.5-0.5b": {
        "q, o": (896, 896, 48),
        "k, v": (128, 896, 48),
        "gate, up": (4864, 896, 48),
        "down": (896, 4864, 24),
        "head": (151936, 896, 1),
    },
}
# More than the caches hold: a model's weights are not cached when a token needs them.
COLD_BYTES = 256 << 20
QUANTISED: tuple[Storage, ...] = ("int8", "int6", "int4")
READ_BYTES = 256 << 20


def seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_rate(memory: torch.Tensor) -> float:
    return memory.nbytes / seconds(memory.sum, 5) / 1e9


def make(storage: str, rows: int, columns: int) -> QuantizedWeight:
    weight = torch.randn(min(rows, 1024), columns) * 0.02
    format = next((known for known in QUANTISED if known == storage), "bf16")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    part = quantize(weight.to(dtypes.get(storage, torch.float32)), format)
    repeat = -(-rows // part.shape[0])
    data, *scales = (t.repeat(repeat, *(1 for _ in t.shape[1:]))[:rows].contiguous() for t in part.tensors)
    return QuantizedWeight(format, (rows, columns), data, scales[0] if scales else None)


def cold_seconds(offer: Kernel, copies: list[QuantizedWeight], x: torch.Tensor, rounds: int) -> float:
    """Return the median time of one multiplication with weights that have left the caches."""
    times = []
    for turn in range(rounds):
        weight = copies[turn % len(copies)]
        start = time.perf_counter()
        offer.compute(weight, HostInput(x), 0, weight.shape[0])
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=LINEARS, default="llama-3.2-1b")
    parser.add_argument("--rows", default="1,4,8,256")
    parser.add_argument("--storage", default="int8,int4,bf16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="candidates whose name begins so")
    options = parser.parse_args()
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    totals: dict[tuple[str, str, int], float] = {}
    print(
        f"{'linear':10} {'storage':7} {'candidate':18} {'M':>4} {'us':>9} {'GB/s':>6} {'GOP/s':>6} {'memory GB/s':>11}"
    )
    for storage in options.storage.split(","):
        for name, (rows, columns, count) in LINEARS[options.shape].items():
            first = make(storage, rows, columns)
            copies = [first] + [
                QuantizedWeight(first.format, first.shape, *(part.clone() for part in first.tensors))
                for _ in range(min(40, COLD_BYTES // first.nbytes))
            ]
            for m in map(int, options.rows.split(",")):
                x = torch.randn(m, columns, dtype=torch.bfloat16)
                for offer in kernels_for(storage):
                    if m > offer.most_rows or not offer.name.startswith(options.only):
                        continue
                    memory_rate = read_rate(memory)
                    took = cold_seconds(offer, copies, x, options.rounds)
                    key = (storage, offer.name, m)
                    totals[key] = totals.get(key, 0.0) + took * count
                    print(
                        f"{name:10} {storage:7} {offer.name:18} {m:4} {took * 1e6:9.0f} "
                        f"{first.nbytes / took / 1e9:6.1f} "
                        f"{2e-9 * m * rows * columns / took:6.0f} {memory_rate:11.1f}",
                        flush=True,
                    )
    print("\nall linears of one pass")
    for (storage, name, m), total in totals.items():
        print(f"{storage:7} {name:18} M={m:4} {total * 1e3:8.1f} ms  {m / total:8.1f} rows/s")


if __name__ == "__main__":
    main()
