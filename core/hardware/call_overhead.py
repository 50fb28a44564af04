"""Measures the overhead of calls besides the bytes they read, timed between products that empty the caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.accelerators.graph import Work
from core.kernels.matmul import host_matmul
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import copied_rows
from core.spec import Rows
from core.startup.torch_threads import one_thread

SMALL, CALLS = 64, 100
"""Rows and columns of a weight so small that its time is all overhead, and the number of timed calls."""
SMALL_OPERATIONS, WIDTH = 40, 2048
PER_LAYER, PER_DEVICE_LAYER = 4.5, 7.0
"""A layer's overhead besides its linears (norms, rotary embedding, Python), in units of SMALL_OPERATIONS small
operations: measured on 16 layers of llama-3.2-1b on two Zen 3 cores, all on the CPU, and with rows on a (simulated)
device."""
NOTHING_S = 1e-6
SCORES, LIKELIEST, BLOCK = 1 << 16, 128, 32
"""Vocabulary size, number of top tokens, and block size of the sampler steps that are timed."""


@dataclass(frozen=True)
class DeviceOverheads:
    """Seconds to launch a small linear; to copy an input to the host and wait for it; to copy the result of CPU rows to
    the device; and of a layer besides its linears."""

    launch_s: float
    sync_s: float
    back_s: float
    layer_s: float


class Overheads:
    """`product` is called before each timed call."""

    def __init__(self, product: Callable[[], object]) -> None:
        self._product = product

    def call_s(self) -> float:
        """Return the seconds of a small product on the CPU."""
        weight, x = host_matmul(_small_weight()), torch.ones(1, SMALL, dtype=torch.bfloat16)
        return self._median(lambda: weight(HostInput(x)))

    def layer_s(self) -> float:
        """Return the seconds of a layer on the CPU besides its linears."""
        return PER_LAYER * self._small_s()

    def score_s(self) -> float:
        """Return the seconds of drawing a token, per vocabulary entry: of the sampler steps that read all scores."""
        scores = torch.linspace(-8, 8, SCORES)
        with one_thread():
            return self._median(lambda: torch.softmax(scores, -1).view(-1, BLOCK).amax(1).topk(LIKELIEST)) / SCORES

    def of_device(self, accelerator: Accelerator) -> DeviceOverheads:
        """Return the overheads of a linear and a layer on a device. Raises NotEnoughMemory, DeviceLost."""
        call_s = self.call_s()
        launch_s = self._forward_s(_linear(accelerator, SMALL))
        divided = _linear(accelerator, SMALL // 2)
        first_s, next_s = self._forward_s(divided), self._forward_s(divided, [divided])
        return DeviceOverheads(
            launch_s,
            max(NOTHING_S, first_s - next_s),
            max(NOTHING_S, next_s - launch_s - call_s),
            PER_DEVICE_LAYER * self._small_s(),
        )

    def _small_s(self) -> float:
        """Return the seconds of small CPU operations, dominated by Python's and torch's overhead, as on any device."""
        x = torch.ones(1, WIDTH, dtype=torch.bfloat16)

        def operations() -> None:
            y = x
            for _ in range(SMALL_OPERATIONS):
                y = y + x

        return self._median(operations)

    def _forward_s(self, linear: HeteroLinear, earlier: Sequence[HeteroLinear] = ()) -> float:
        """Return the seconds of a linear that reads a new input, or one that `earlier` linears have read."""
        x = torch.ones(1, SMALL, dtype=torch.bfloat16, device=linear.accelerator.device)

        def before() -> None:
            linear.inputs.forget()
            for other in earlier:
                other(x)
            self._product()

        taken = _median(lambda: linear(x), before)
        linear.accelerator.synchronize()
        return taken

    def _median(self, work: Callable[[], object]) -> float:
        return _median(work, self._product)


def replay_saves(accelerator: Accelerator) -> float:
    """Return the fraction (0-1) of the time of small operations on a device that replaying them as a graph saves.

    0 if it has no graphs, or its driver cannot make this one. Raises NotEnoughMemory, DeviceLost.
    """
    one = torch.ones(1, WIDTH, dtype=torch.bfloat16)
    there = accelerator.to_device(one)

    def operations(x: Tensor) -> Tensor:
        for _ in range(SMALL_OPERATIONS):
            x = x + there
        return x

    try:
        replay = accelerator.captured(lambda _, x: operations(x), [one])
    except RuntimeError:
        return 0.0
    if replay is None:
        return 0.0
    accelerator.synchronize()

    def seconds(work: Work) -> float:
        def waited_for() -> None:
            work(there)
            accelerator.synchronize()

        return _median(waited_for, accelerator.synchronize)

    called, replayed = seconds(operations), seconds(replay)
    replay.drop()
    return min(1.0, max(0.0, 1 - replayed / called))


def _median(work: Callable[[], object], before: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        before()
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _small_weight() -> QuantizedWeight:
    return QuantizedWeight("bf16", (SMALL, SMALL), torch.ones(SMALL, SMALL, dtype=torch.bfloat16))


def _linear(accelerator: Accelerator, resident: int) -> HeteroLinear:
    """Return a small linear whose first rows are on the device, the others on the CPU."""
    host = HostWeight(host_matmul(_small_weight()))
    linear = HeteroLinear(host, None, accelerator, SharedInputs(accelerator))
    linear.division = Rows(resident, 0, SMALL - resident)
    buffer = accelerator.empty((resident * host.row_bytes,), torch.uint8)
    linear.resident = copied_rows(accelerator, accelerator.stream(), host, 0, resident, buffer)
    return linear
