"""A linear whose rows are computed by several: resident and streamed rows on the device, the others on the CPU.

    x -> [device: resident rows | streamed rows as they arrive]  ||  [CPU: its rows where they lie] -> y

The device's work is only launched here, so it runs while this thread computes the CPU's rows. Linears that are given
the same input (q/k/v, gate/up) share its copy on the host and its quantised form: the tensor itself is recognised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor, nn

from core.accelerators.base import Accelerator, HostCopy
from core.kernels.prepared_input import HostInput
from core.offload.host_weight import DeviceInput, DeviceRows, HostWeight, device_input
from core.offload.parameter_manager import Chunk, Streaming
from core.spec import Rows


class HostInputs:
    """The last input seen, as the CPU's kernels want it: made once for all linears that read it.

    Which linears read the same input is learned from one pass; in the next, the first that asks has the products of the
    others computed along with its own, in one run of the kernels.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._prepared: HostInput | None = None
        self._first: HostLinear | None = None
        self._ready: dict[HostLinear, Tensor] = {}

    def product(self, linear: HostLinear, x: Tensor) -> Tensor:
        """`x` (..., K) times the linear's weight: (M, N)."""
        if self._prepared is None or self._seen is not x:
            self._start(linear, x)
        elif linear not in self._ready:
            self._learn(linear)
        return self._ready.pop(linear)

    def forget(self) -> None:
        """Let go of the tensors at the end of a pass."""
        self._unlearn()
        self._seen = self._prepared = self._first = None

    def _start(self, linear: HostLinear, x: Tensor) -> None:
        self._unlearn()
        self._seen, self._prepared, self._first = x, HostInput(x), linear
        self._ready = linear.start(self._prepared)

    def _learn(self, linear: HostLinear) -> None:
        assert self._prepared is not None
        assert self._first is not None
        if linear is not self._first and linear not in self._first.followers:
            self._first.lead([*self._first.followers, linear])
        self._ready[linear] = linear.host.matmul(self._prepared, 0, linear.host.rows)

    def _unlearn(self) -> None:
        """What was computed for nobody is not computed again."""
        if self._first is not None and self._ready:
            self._first.lead([one for one in self._first.followers if one not in self._ready])
        self._ready = {}


class HostLinear(nn.Module):
    """All rows on the CPU."""

    def __init__(self, weight: HostWeight, bias: Tensor | None, inputs: HostInputs) -> None:
        super().__init__()
        self.host = weight
        self.bias = bias
        self.inputs = inputs
        self.followers: list[HostLinear] = []
        self._together = HostWeight.together([weight])

    def lead(self, followers: list[HostLinear]) -> None:
        """Let `start` compute these along with this linear from now on."""
        self.followers = followers
        self._together = HostWeight.together([self.host, *(one.host for one in followers)])

    def start(self, x: HostInput) -> dict[HostLinear, Tensor]:
        """The products (M, N) of this linear and its followers with `x` (M, K)."""
        return dict(zip((self, *self.followers), self._together(x), strict=True))

    @property
    def weight(self) -> Tensor:
        """The whole weight (N, K): Mamba's layers multiply by one themselves, or ask for its type."""
        return self.host.whole()

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        y = self.inputs.product(self, x).view(*x.shape[:-1], self.host.rows)
        return y if self.bias is None else y + self.bias


class CopiedHead(HostLinear):
    """An output head with a copy in fewer bits, which is read first for few rows of input, unless `whole`."""

    def __init__(self, weight: HostWeight, bias: Tensor | None, inputs: HostInputs) -> None:
        super().__init__(weight, bias, inputs)
        self.whole = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        given = HostInput(x)
        if self.whole or self.host.copied is None or given.rows > self.host.copied.most_rows:
            return super().forward(x)
        y = self.host.copied(given).view(*x.shape[:-1], self.host.rows)
        return y if self.bias is None else y + self.bias


class SharedInputs:
    """The last input on the device, brought to the host once for all linears that read it; `cpu_s` is how long the
    CPU has computed on all of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.cpu_s = 0.0
        self._accelerator = accelerator
        self._there: Tensor | None = None
        self._on_device: DeviceInput | None = None
        self._seen: Tensor | None = None
        self._copy: HostCopy | None = None
        self._prepared: HostInput | None = None

    def on_device(self, x: Tensor) -> DeviceInput:
        """`x` (..., K) as the device's products take it."""
        if self._on_device is None or self._there is not x:
            self._there, self._on_device = x, device_input(x.reshape(-1, x.shape[-1]))
        return self._on_device

    def start(self, x: Tensor) -> None:
        """Begin to bring `x` (..., K) to the host, unless that was done for the linear before."""
        if self._seen is not x:
            self._seen, self._prepared = x, None
            self._copy = self._accelerator.to_host(x)

    def arrived(self) -> HostInput:
        """The input that was started last."""
        if self._prepared is None:
            assert self._copy is not None
            self._prepared = HostInput(self._copy.result())
        return self._prepared

    def forget(self) -> None:
        """Let go of the tensors at the end of a pass."""
        self._there = self._on_device = self._seen = self._copy = self._prepared = None


class HeteroLinear(nn.Module):
    """Rows divided between the device and the CPU as `division` says; `chunks` are its streamed rows in order."""

    def __init__(self, weight: HostWeight, bias: Tensor | None, accelerator: Accelerator, inputs: SharedInputs) -> None:
        """`bias`: (N,) on the host; `self.bias` is where it is added: here first, on the device when it was moved."""
        super().__init__()
        self.host = weight
        self.host_bias = bias
        self.bias = bias
        self.accelerator = accelerator
        self.inputs = inputs
        self.streams: Streaming | None = None
        self.resident: DeviceRows | None = None
        self.division = Rows(0, 0, weight.rows)
        self.chunks: list[Chunk] = []

    @property
    def weight(self) -> Tensor:
        """The whole weight (N, K) on the device: Mamba's layers multiply by one themselves, or ask for its type."""
        return self.accelerator.to_device(self.host.whole())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), on the device."""
        if x.device != self.accelerator.device:  # cached states that lie in RAM, as DeepSeek's layers multiply them
            x = self.accelerator.to_device(x)
        whole = self.resident is not None and self.resident.rows == self.host.rows
        return (self._whole(x) if whole else self._divided(x)).view(*x.shape[:-1], self.host.rows)

    def _whole(self, x: Tensor) -> Tensor:
        """All rows are resident: the device's own linear, with as little around it as can be."""
        resident, result, given = self.resident, list[Tensor](), self.inputs.on_device(x)
        assert resident is not None
        self.accelerator.launch(
            lambda: result.append(resident.linear(given, self.bias)), self.host.rows * self.host.row_bytes
        )
        self.accelerator.settle()
        return result[0]

    def _divided(self, x: Tensor) -> Tensor:
        given, out = self.inputs.on_device(x), x.new_empty(x.shape[:-1].numel(), self.host.rows)
        if self.division.cpu:
            self.inputs.start(x)
        if self.resident is not None:
            self._launch(self.resident, given, out, 0)
        chunks = iter(self.chunks)
        late = self._launch_ready(given, out, chunks)
        if self.division.cpu:
            self._compute_host(out)
        for chunk in [late, *chunks] if late else ():
            self._launch_chunk(given, out, chunk)
        self.accelerator.settle()
        return out if self.bias is None else out + self.bias

    def _launch(self, rows: DeviceRows, x: DeviceInput, out: Tensor, begin: int) -> None:
        def compute() -> None:
            out[:, begin : begin + rows.rows] = rows.linear(x)

        self.accelerator.launch(compute, rows.rows * self.host.row_bytes)

    def _launch_ready(self, x: DeviceInput, out: Tensor, chunks: Iterator[Chunk]) -> Chunk | None:
        """Launch what the ring holds already; the first piece that would have to be waited for."""
        for chunk in chunks:
            assert self.streams is not None
            if not self.streams.has_ready(chunk):
                return chunk
            self._launch_chunk(x, out, chunk)
        return None

    def _launch_chunk(self, x: DeviceInput, out: Tensor, chunk: Chunk) -> None:
        assert self.streams is not None
        if not self.streams.has_ready(chunk):
            # The ring may be waiting for what is launched: a simulated device computes only when asked to.
            self.accelerator.settle()
        with self.streams.take(chunk) as rows:
            self._launch(rows, x, out, chunk.begin)

    def _compute_host(self, out: Tensor) -> None:
        begin = self.division.resident + self.division.streamed
        x = self.inputs.arrived()
        start = time.perf_counter()
        y = self.host.matmul(x, begin, self.host.rows)
        self.inputs.cpu_s += time.perf_counter() - start
        on_device = self.accelerator.to_device(y)
        self.accelerator.launch(lambda: out[:, begin:].copy_(on_device))
