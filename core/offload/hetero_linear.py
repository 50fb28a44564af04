"""A linear split between device and CPU: resident and streamed rows on the device, the others on the CPU.

    x -> [device: resident rows | streamed rows as they arrive]  ||  [CPU: its rows in host memory] -> y

The device's work is only launched here, so it runs while this thread computes the CPU's rows. Linears with the same
input (q/k/v, gate/up) are computed together with the first of them: their input is copied to the host once, the CPU
computes the rows of all in one batched kernel call, and the results return in one copy. A shared input is recognised by
the identity of the tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from core.accelerators.base import Accelerator, HostCopy
from core.kernels.matmul import BatchedMatmul
from core.kernels.prepared_input import HostInput
from core.offload.halves import Halves, Later
from core.offload.host_weight import DeviceInput, DeviceRows, HostWeight, device_input
from core.offload.parameter_manager import Chunk, Streaming
from core.offload.shares import ALONE, ColumnShare, Role, RowShare, Share
from core.offload.whole_weight import WholeWeight
from core.spec import Rows


class HostInputs:
    """The last input, prepared for the CPU's kernels once for all linears that read it.

    One pass learns which linears read the same input. From the next pass on, the first of them computes the products of
    all in one batched kernel call.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._prepared: HostInput | None = None
        self._first: HostLinear | None = None
        self._ready: dict[HostLinear, Tensor] = {}

    def product(self, linear: HostLinear, x: Tensor) -> Tensor:
        """Return `x` (..., K) times the linear's weight: (M, N)."""
        if self._prepared is None or self._seen is not x:
            self._start(linear, x)
        elif linear not in self._ready:
            self._learn(linear)
        return self._ready.pop(linear)

    def forget(self) -> None:
        """Release the tensors at the end of a pass."""
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
        """Stop computing products that nobody asked for."""
        if self._first is not None and self._ready:
            self._first.lead([one for one in self._first.followers if one not in self._ready])
        self._ready = {}


class HostLinear(nn.Module):
    """A linear with all rows on the CPU."""

    def __init__(self, weight: HostWeight, bias: Tensor | None, inputs: HostInputs) -> None:
        super().__init__()
        self.host = weight
        self.bias = bias
        self.inputs = inputs
        self.followers: list[HostLinear] = []
        self._together = HostWeight.together([weight])

    def lead(self, followers: list[HostLinear]) -> None:
        """Make `start` compute `followers` together with this linear from now on."""
        self.followers = followers
        self._together = HostWeight.together([self.host, *(one.host for one in followers)])

    def start(self, x: HostInput) -> dict[HostLinear, Tensor]:
        """Return the products (M, N) of this linear and its followers with `x` (M, K)."""
        return dict(zip((self, *self.followers), self._together(x), strict=True))

    @property
    def weight(self) -> Tensor:
        """Return the whole weight (N, K), for layers that read its type or multiply by it themselves."""
        if self.host.is_plain:
            return self.host.whole()
        like = self.host.shape, self.host.dtype, torch.device("cpu")
        return WholeWeight(like, self.host.whole, self.product)

    def product(self, x: Tensor) -> Tensor:
        """Return `x` (..., K) times the weight, without the bias: (..., N)."""
        return self.inputs.product(self, x).view(*x.shape[:-1], self.host.rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class CopiedHead(HostLinear):
    """An output head with a copy at fewer bits, which is read first for few input rows, unless `whole`."""

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


class Brought:
    """An input being copied to the host."""

    def __init__(self, copy: HostCopy) -> None:
        self._copy = copy
        self._prepared: HostInput | None = None

    def __call__(self) -> HostInput:
        """Wait for the copy; return the input prepared for the CPU's kernels."""
        if self._prepared is None:
            self._prepared = HostInput(self._copy.result())
        return self._prepared


class SharedInputs:
    """The last device input, copied to the host once for all linears that read it, and products computed in advance.

    `cpu_s`: total seconds of CPU products.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.cpu_s = 0.0
        self._accelerator = accelerator
        self._there: Tensor | None = None
        self._on_device: DeviceInput | None = None
        self._seen: Tensor | None = None
        self._brought: Brought | None = None
        self._ready: dict[HeteroLinear, tuple[Tensor, Tensor | Halves]] = {}

    def on_device(self, x: Tensor) -> DeviceInput:
        """Return `x` (..., K) in the form that the device's products take."""
        if self._on_device is None or self._there is not x:
            self._there, self._on_device = x, device_input(x.reshape(-1, x.shape[-1]))
        return self._on_device

    def start(self, x: Tensor) -> Brought:
        """Start copying `x` (..., K) to the host, unless the previous linear already did."""
        if self._brought is None or self._seen is not x:
            self._seen, self._brought = x, Brought(self._accelerator.to_host(x))
        return self._brought

    def keep(self, linear: HeteroLinear, x: Tensor, y: Tensor | Halves) -> None:
        """Store the product `y` (..., N) of a linear with `x` (..., K), until the linear is called."""
        self._ready[linear] = x, y

    def ready(self, linear: HeteroLinear, x: Tensor) -> Tensor | Halves | None:
        """Return and remove the stored product (..., N) of this linear with this input (..., K); None if there is
        none."""
        given, y = self._ready.pop(linear, (None, None))
        return y if given is x else None

    def forget(self) -> None:
        """Release the tensors at the end of a pass."""
        self._there = self._on_device = self._seen = self._brought = None
        self._ready.clear()


class HeteroLinear(nn.Module):
    """A linear split between device and CPU according to `division`; `chunks` are its streamed rows in order."""

    def __init__(self, weight: HostWeight, bias: Tensor | None, accelerator: Accelerator, inputs: SharedInputs) -> None:
        """`bias`: (N,) on the host; `self.bias` is the one to add, which moves to the device with the module."""
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
        self.role = ALONE
        self._together: dict[tuple[tuple[HostWeight, int], ...], BatchedMatmul] = {}

    @property
    def weight(self) -> Tensor:
        """Return the whole weight (N, K) on the device, for layers that read its type or multiply by it themselves."""
        like = self.host.shape, self.host.dtype, self.accelerator.device
        return WholeWeight(like, lambda: self.accelerator.to_device(self.host.whole()), self.product)

    @property
    def is_whole(self) -> bool:
        """Return whether the weight is entirely resident."""
        return self.resident is not None and self.resident.weight.shape == self.host.weight.shape

    def product(self, x: Tensor) -> Tensor:
        """Return `x` (..., K) times the weight, without the bias: (..., N); the CPU computes the streamed rows."""
        if self.is_whole:
            return self.resident_product(x, None)
        return self._by_rows([RowShare(self, x, None, streams=False)], x)[0]

    def play(self, role: Role) -> None:
        """Set this linear's role in its group."""
        self.role = role
        self._together.clear()
        self.host.forget_cuts()

    def forward(self, x: Tensor | Halves) -> Tensor | Halves:
        """(..., K) -> (..., N), on the device, or split into halves."""
        if isinstance(x, Halves) and self.role.by_columns:
            return self._added([ColumnShare(self, x.lead, x.of, x.there)], lambda: HostInput(x.here()))[0]
        given = x.whole() if isinstance(x, Halves) else x
        if given.device != self.accelerator.device:  # DeepSeek's layers pass cached states that lie in RAM
            given = self.accelerator.to_device(given)
        return self._whole(given) if self.is_whole else self._divided(given)

    def _whole(self, x: Tensor) -> Tensor:
        """Compute (..., N) with all rows resident: the device's own linear, with minimal overhead."""
        return self.resident_product(x, self.bias)

    def resident_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return `x` (..., k) times the resident rows or columns plus bias (n,): (..., n), on the device."""
        resident, result, given = self.resident, list[Tensor](), self.inputs.on_device(x)
        assert resident is not None
        self.accelerator.launch(lambda: result.append(resident.linear(given, bias)), resident.weight.nbytes)
        self.accelerator.settle()
        return result[0].view(*x.shape[:-1], resident.rows)

    def _divided(self, x: Tensor) -> Tensor | Halves:
        """Return the product with `x` (..., K); the first linear of a group also computes those of the others."""
        if (ready := self.inputs.ready(self, x)) is not None:
            return ready
        if self.role.by_columns:
            border = self.division.resident + self.division.streamed
            share = ColumnShare(self, x.shape[:-1], x.dtype, [x])
            return self._added([share], self.inputs.start(x[..., border:]) if share.hosted else None)[0]
        group = self.role.group or (self,)
        if group[0] is not self:
            # The first linear read another input; this linear's streamed chunks were consumed with it, so the CPU
            # computes them.
            return self._by_rows([RowShare(self, x, self.bias, streams=False)], x)[0]
        stays = self.role.feeds and self.division.cpu > 0
        shares = [RowShare(one, x, one.bias, stays=stays) for one in group]
        made: Sequence[Tensor | Halves] = self._halved(shares, x) if stays else self._by_rows(shares, x)
        own, *others = made
        for linear, y in zip(group[1:], others, strict=True):
            self.inputs.keep(linear, x, y)
        return own

    def _by_rows(self, shares: Sequence[RowShare], x: Tensor) -> Sequence[Tensor]:
        """Return `x` (..., K) times all rows of each share, (..., N)."""
        return self._added(shares, self.inputs.start(x) if any(share.hosted for share in shares) else None)

    def _added(self, shares: Sequence[Share], brought: Callable[[], HostInput] | None) -> list[Tensor]:
        """Return the full product of each share on the device, (..., N); `brought` is the CPU's input."""
        late = self._launched(shares)
        hosted = [share for share in shares if share.hosted]
        if hosted and brought is not None:
            found = self._multiplied(hosted, brought)
            for share, there in zip(hosted, self.accelerator.together_to_device(found), strict=True):
                share.launch_arrived(there)
        self._launch_late(late)
        self.accelerator.settle()
        return [share.result() for share in shares]

    def _halved(self, shares: Sequence[RowShare], x: Tensor) -> list[Halves]:
        """Return the halves of each share, left where they are computed.

        The CPU starts when its half is needed, or while waiting for the link.
        """
        brought = self.inputs.start(x)
        late = self._launched(shares)
        found = Later(lambda: self._multiplied(shares, brought))
        if late:
            found()
        self._launch_late(late)
        return [share.halves(found, number) for number, share in enumerate(shares)]

    def _launched(self, shares: Sequence[Share]) -> list[tuple[Share, Chunk]]:
        """Launch resident parts and the chunks that are ready; return the chunks that would have to be waited for."""
        for share in shares:
            share.launch_resident()
        waiting = [(share, chunk) for share in shares for chunk in share.chunks]
        while waiting and self.streams is not None and self.streams.has_ready(waiting[0][1]):
            share, chunk = waiting.pop(0)
            share.launch_chunk(chunk)
        return waiting

    def _launch_late(self, waiting: Sequence[tuple[Share, Chunk]]) -> None:
        for share, chunk in waiting:
            share.launch_chunk(chunk)

    def _multiplied(self, shares: Sequence[Share], brought: Callable[[], HostInput]) -> list[Tensor]:
        """Compute the CPU's part of each share, (M, n)."""
        x, key = brought(), tuple(share.on_host for share in shares)
        if key not in self._together:
            weights, begins = zip(*key, strict=True)
            self._together[key] = HostWeight.together(weights, begins)
        start = time.perf_counter()
        found = self._together[key](x)
        self.inputs.cpu_s += time.perf_counter() - start
        return found
