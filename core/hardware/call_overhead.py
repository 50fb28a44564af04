"""Measures the overhead of calls besides the bytes they read, timed between products that empty the caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from core.accelerators.base import Accelerator
from core.accelerators.graph import Work
from core.kernels.matmul import host_matmul
from core.kernels.native_abi import instruction_sets
from core.kernels.native_layer import LayerParts, NativeLayer, NormParts
from core.kernels.native_library import NativeLibrary, open_library
from core.kernels.native_run import NativeRun, RunLayer, Sight
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import copied_rows
from core.spec import Rows
from core.startup.torch_threads import one_thread

SMALL, CALLS, RUN_LINEARS = 64, 100, 7
"""Rows and columns of a weight so small that its time is all overhead, the number of timed calls, and that of linears
in a layer of a run."""
SMALL_OPERATIONS, WIDTH, PROMPT_ROWS = 40, 2048, 256
PER_LAYER, PER_DEVICE_LAYER = 4.5, 7.0
"""A layer's overhead besides its linears (norms, rotary embedding, Python), in units of SMALL_OPERATIONS small
operations: measured on 16 layers of llama-3.2-1b on two Zen 3 cores, all on the CPU, and with rows on a (simulated)
device."""
PER_RUN_LAYER, PER_PASS = 0.1, 6.0
"""What Python does for a layer of a run, and around the layers of a pass with drawing and spelling its token, in the
same units: measured on 4 layers of the guide and 30 of SmolLM2-135M on two threads of Emerald Rapids."""
RUN_LAYERS, RUN_TOKENS, HEAD = (2, 18), 16, 32
"""The layers of two runs, whose difference shows what a layer takes; cached tokens, and columns of a head."""
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
        return PER_LAYER * self._small_s

    def run_s(self) -> float:
        """Return the seconds of a layer on the CPU besides its products, in a run; without our library there are no
        runs."""
        if not (sets := instruction_sets()):
            return self.layer_s() + RUN_LINEARS * self.call_s()
        short, long = (self._median(small_run(open_library(sets[0]), count)) for count in RUN_LAYERS)
        native_s = (long - short) / (RUN_LAYERS[1] - RUN_LAYERS[0])
        return max(NOTHING_S, native_s) + PER_RUN_LAYER * self._small_s

    def pass_s(self) -> float:
        """Return the seconds of a pass around its layers, and for the token that is drawn then."""
        return PER_PASS * self._small_s

    def state_s(self) -> float:
        """Return the seconds of a simple operation on a prompt's states, per row and column."""
        rows = torch.ones(PROMPT_ROWS, WIDTH, dtype=torch.bfloat16)
        # The least: waiting for a core that another program has takes longer than the work.
        return min(_timed(lambda: F.silu(rows), _nothing)) / rows.numel()

    def score_s(self) -> float:
        """Return the seconds of drawing a token, per vocabulary entry: of the sampler steps that read all scores."""
        logits = torch.linspace(-8, 8, SCORES, dtype=torch.bfloat16)

        def draw() -> None:
            scores = logits.float()
            scores.max()
            shares = torch.softmax(scores / 0.7, -1)
            shares.view(-1, BLOCK).amax(1).argmax()
            shares.view(-1, BLOCK).amax(1).topk(LIKELIEST)

        with one_thread():
            return self._median(draw) / SCORES

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
            PER_DEVICE_LAYER * self._small_s,
        )

    @cached_property
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
    return statistics.median(_timed(work, before))


def _timed(work: Callable[[], object], before: Callable[[], object]) -> Iterator[float]:
    for _ in range(CALLS):
        before()
        start = time.perf_counter()
        work()
        yield time.perf_counter() - start


def _nothing() -> None:
    """Leave the caches as they are."""


def small_run(library: NativeLibrary, count: int) -> Callable[[], object]:
    """Return a pass over one row through `count` layers so small that their time is all overhead, in one call."""
    row, head = torch.ones(1, 1, SMALL, dtype=torch.bfloat16), torch.ones(1, 1, HEAD, dtype=torch.bfloat16)
    norm = NormParts(row.view(-1), 1e-5, rounded=True)
    norms = [norm, None, norm, None, None, None, None]
    weights = [_small_weight()] * RUN_LINEARS
    parts = LayerParts(HEAD, "silu", weights, [None] * 4, norms)
    run = NativeRun([RunLayer(NativeLayer(library, parts, row.dtype), None, 1.0) for _ in range(count)])
    shape = (1, SMALL // HEAD, 2 * RUN_TOKENS, HEAD)
    states = [[torch.zeros(shape, dtype=row.dtype) for _ in range(2)] for _ in range(count)]

    def work() -> object:
        run.hold(states)  # only the caller keeps them alive
        return run(row, {0: Sight(head, head, None, 0, RUN_TOKENS)})

    return work


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
