"""A linear whose rows are computed by several: resident and streamed rows on the device, the others on the CPU.

    x -> [device: resident rows | streamed rows as they arrive]  ||  [CPU: its rows where they lie] -> y

The device's work is only launched here, so it runs while this thread computes the CPU's rows. Linears that are given
the same input (q/k/v, gate/up) are computed with the first of them: what they read comes to the host once, the CPU has
the rows of all in one run of its kernels, and these go back in one copy. That it is the same input is seen: the tensor
itself is recognised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from core.accelerators.base import Accelerator, HostCopy
from core.kernels.matmul import BatchedMatmul
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
    """The last input on the device, brought to the host once for all linears that read it, and what was computed for
    others with the first that asked. `cpu_s`: how long the CPU has computed on all of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.cpu_s = 0.0
        self._accelerator = accelerator
        self._there: Tensor | None = None
        self._on_device: DeviceInput | None = None
        self._seen: Tensor | None = None
        self._copy: HostCopy | None = None
        self._prepared: HostInput | None = None
        self._ready: dict[HeteroLinear, tuple[Tensor, Tensor]] = {}

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

    def keep(self, linear: HeteroLinear, x: Tensor, y: Tensor) -> None:
        """Remember what a linear, which was not asked yet, makes of `x` (..., K): `y` (M, N)."""
        self._ready[linear] = x, y

    def ready(self, linear: HeteroLinear, x: Tensor) -> Tensor | None:
        """What was remembered of this linear and this input, once."""
        given, y = self._ready.pop(linear, (None, None))
        return y if given is x else None

    def forget(self) -> None:
        """Let go of the tensors at the end of a pass."""
        self._there = self._on_device = self._seen = self._copy = self._prepared = None
        self._ready.clear()


class HeteroLinear(nn.Module):
    """Rows divided between the device and the CPU as `division` says; `chunks` are its streamed rows in order.

    `group`: the linears that are computed with the first of them, in the order of the pass, this one among them.
    """

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
        self.chunks: Sequence[Chunk] = ()
        self.group: Sequence[HeteroLinear] = ()
        self._together: dict[tuple[tuple[HeteroLinear, int], ...], BatchedMatmul] = {}

    @property
    def weight(self) -> Tensor:
        """The whole weight (N, K) on the device: Mamba's layers multiply by one themselves, or ask for its type."""
        return self.accelerator.to_device(self.host.whole())

    @property
    def is_whole(self) -> bool:
        """Whether all rows are resident."""
        return self.resident is not None and self.resident.rows == self.host.rows

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), on the device."""
        if x.device != self.accelerator.device:  # cached states that lie in RAM, as DeepSeek's layers multiply them
            x = self.accelerator.to_device(x)
        return (self._whole(x) if self.is_whole else self._divided(x)).view(*x.shape[:-1], self.host.rows)

    def lead(self, group: Sequence[HeteroLinear]) -> None:
        """Let these be computed with the first of them from now on."""
        self.group = group
        self._together.clear()

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
        y = self.inputs.ready(self, x)
        if y is None:
            y = self._computed(x)
        return y if self.bias is None else y + self.bias

    def _computed(self, x: Tensor) -> Tensor:
        """What the linear makes of `x`, (M, N); the others of its group are computed along if it is the first."""
        if self.group and self.group[0] is not self:
            # The first read something else, and what is streamed of this one was taken with it.
            return self._multiply([Share(self, x, streams=False)], x)[0]
        own, *others = self._multiply([Share(one, x) for one in self.group or (self,)], x)
        for linear, y in zip(self.group[1:], others, strict=True):
            self.inputs.keep(linear, x, y)
        return own

    def _multiply(self, shares: Sequence[Share], x: Tensor) -> list[Tensor]:
        """`x` (..., K) times all rows of each, (M, N)."""
        given = self.inputs.on_device(x)
        hosted = [share for share in shares if share.begin < share.linear.host.rows]
        if hosted:
            self.inputs.start(x)
        for share in shares:
            share.launch_resident(given)
        late = self._launch_ready(given, chunks := iter([(one, chunk) for one in shares for chunk in one.chunks]))
        if hosted:
            self._compute_host(hosted)
        for share, chunk in [late, *chunks] if late else ():
            share.launch_chunk(given, chunk)
        self.accelerator.settle()
        return [share.out for share in shares]

    def _launch_ready(self, x: DeviceInput, chunks: Iterator[tuple[Share, Chunk]]) -> tuple[Share, Chunk] | None:
        """Launch what the ring holds already; the first piece that would have to be waited for."""
        for share, chunk in chunks:
            assert self.streams is not None
            if not self.streams.has_ready(chunk):
                return share, chunk
            share.launch_chunk(x, chunk)
        return None

    def _compute_host(self, shares: Sequence[Share]) -> None:
        """The CPU's rows of these, brought to the device in one copy."""
        x, together = self.inputs.arrived(), self._batched(shares)
        start = time.perf_counter()
        found = together(x)
        self.inputs.cpu_s += time.perf_counter() - start
        for share, there in zip(shares, self.accelerator.together_to_device(found), strict=True):
            share.launch_arrived(there)

    def _batched(self, shares: Sequence[Share]) -> BatchedMatmul:
        """What computes the CPU's rows of these."""
        key = tuple((share.linear, share.begin) for share in shares)
        if key not in self._together:
            linears, begins = zip(*key, strict=True)
            self._together[key] = HostWeight.together([one.host for one in linears], begins)
        return self._together[key]


class Share:
    """What one linear has to do in a pass: `out` (M, N), whose rows from `begin` on are the CPU's."""

    def __init__(self, linear: HeteroLinear, x: Tensor, *, streams: bool = True) -> None:
        """Without `streams` the CPU has the streamed rows, too."""
        self.linear = linear
        self.chunks = linear.chunks if streams else ()
        self.begin = linear.division.resident + (linear.division.streamed if streams else 0)
        self.out = x.new_empty(x.shape[:-1].numel(), linear.host.rows)

    def launch_resident(self, x: DeviceInput) -> None:
        """Compute the resident rows for x (M, K)."""
        if self.linear.resident is not None:
            self._launch(self.linear.resident, x, 0)

    def launch_chunk(self, x: DeviceInput, chunk: Chunk) -> None:
        """Compute streamed rows for x (M, K), as soon as they are there."""
        linear = self.linear
        assert linear.streams is not None
        if not linear.streams.has_ready(chunk):
            # The ring may be waiting for what is launched: a simulated device computes only when asked to.
            linear.accelerator.settle()
        with linear.streams.take(chunk) as rows:
            self._launch(rows, x, chunk.begin)

    def launch_arrived(self, y: Tensor) -> None:
        """Put the CPU's rows (M, N - begin), which are on the device, in their place."""
        self.linear.accelerator.launch(lambda: self.out[:, self.begin :].copy_(y))

    def _launch(self, rows: DeviceRows, x: DeviceInput, begin: int) -> None:
        def compute() -> None:
            self.out[:, begin : begin + rows.rows] = rows.linear(x)

        self.linear.accelerator.launch(compute, rows.rows * self.linear.host.row_bytes)
