"""One linear's work in a pass: what is launched, streamed or left to the CPU, and where the results go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from core.offload.halves import Halves, Later
from core.offload.host_weight import DeviceInput, DeviceRows, HostWeight, device_input
from core.offload.parameter_manager import Chunk

if TYPE_CHECKING:
    from core.offload.hetero_linear import HeteroLinear


@dataclass(frozen=True)
class Role:
    """A linear's role in a group that is computed together.

    `group`: the linears computed together with its first member, in pass order, including itself.
    `feeds`: a single linear reads their results, and is split by columns.
    `by_columns`: this linear is split by columns.
    """

    group: Sequence[HeteroLinear] = ()
    feeds: bool = False
    by_columns: bool = False


ALONE = Role()


class Share(Protocol):
    """One linear's work in a pass. `hosted`: the CPU computes part of it; `on_host`: a weight and its first row
    there."""

    chunks: Sequence[Chunk]
    hosted: bool
    on_host: tuple[HostWeight, int]

    def launch_resident(self) -> None:
        """Launch the product with the resident part."""

    def launch_chunk(self, chunk: Chunk) -> None:
        """Launch the product with a streamed chunk, after its arrival."""

    def launch_arrived(self, y: Tensor) -> None:
        """Launch the merge of the CPU's part (M, n), which is on the device."""

    def result(self) -> Tensor:
        """Return (..., N) on the device, once all was launched and settled."""


class RowShare:
    """A linear split by rows: `_out` (M, n) on the device, the CPU's rows from `begin` on."""

    def __init__(
        self, linear: HeteroLinear, x: Tensor, bias: Tensor | None, *, streams: bool = True, stays: bool = False
    ) -> None:
        """`bias` (N,) is added on the device. Without `streams`, the CPU also computes the streamed rows. With `stays`,
        its results stay on the host."""
        self.linear = linear
        self.chunks = linear.chunks if streams else ()
        self.begin = linear.division.resident + (linear.division.streamed if streams else 0)
        self.hosted = self.begin < linear.host.rows
        self.on_host = linear.host, self.begin
        self.lead = x.shape[:-1]
        self._bias = bias
        self._x = linear.inputs.on_device(x)
        self._out = x.new_empty(prod(self.lead), self.begin if stays else linear.host.rows)

    def launch_resident(self) -> None:
        if self.linear.resident is not None:
            self._launch(self.linear.resident, 0)

    def launch_chunk(self, chunk: Chunk) -> None:
        with_streamed(self.linear, chunk, lambda rows: self._launch(rows, chunk.begin))

    def launch_arrived(self, y: Tensor) -> None:
        self.linear.accelerator.launch(lambda: self._out[:, self.begin :].copy_(y))

    def result(self) -> Tensor:
        y = self._out.view(*self.lead, self.linear.host.rows)
        return y if self._bias is None else y + self._bias

    def halves(self, found: Later[list[Tensor]], number: int) -> Halves:
        """Return both halves (..., n), each with its part of the bias; the CPU's is number `number` in `found`."""
        there, bias, host_bias = list[Tensor](), self._bias, self.linear.host_bias

        def launched() -> None:
            own = self._out.view(*self.lead, self.begin)
            there.append(own if bias is None else own + bias[: self.begin])

        def computed() -> Tensor:
            own = found()[number].view(*self.lead, -1)
            return own if host_bias is None else own + host_bias[self.begin :]

        self.linear.accelerator.launch(launched)
        return Halves(self.linear.accelerator, there, Later(computed), self.lead, self._out.dtype)

    def _launch(self, rows: DeviceRows, begin: int) -> None:
        def compute() -> None:
            self._out[:, begin : begin + rows.rows] = rows.linear(self._x)

        self.linear.accelerator.launch(compute, rows.rows * self.linear.host.row_bytes)


class ColumnShare:
    """A linear split by columns: each side multiplies its own, and the partial sums are added on the device."""

    def __init__(self, linear: HeteroLinear, lead: Sequence[int], dtype: torch.dtype, there: list[Tensor]) -> None:
        """`there`: holds the input (..., K), or its first columns, on the device by the time the launches run."""
        self.linear = linear
        self.chunks = linear.chunks
        rows, host = linear.division, linear.host
        border = rows.resident + rows.streamed
        self.hosted = border < host.columns
        self.on_host = (host.cut(border, host.columns) if self.hosted and border else host), 0
        self._lead = lead
        self._there = there
        make = torch.zeros if linear.resident is None else torch.empty
        self._out = make(prod(lead), host.rows, dtype=dtype, device=linear.accelerator.device)

    def launch_resident(self) -> None:
        if (rows := self.linear.resident) is not None:
            self.linear.accelerator.launch(
                lambda: self._out.copy_(rows.linear(self._input((0, rows.weight.shape[1])))), rows.weight.nbytes
            )

    def launch_chunk(self, chunk: Chunk) -> None:
        columns = chunk.columns
        assert columns is not None

        def add(rows: DeviceRows) -> None:
            self._out[:, chunk.begin : chunk.end] += rows.linear(self._input(columns))

        accelerator = self.linear.accelerator
        with_streamed(self.linear, chunk, lambda rows: accelerator.launch(lambda: add(rows), rows.weight.nbytes))

    def launch_arrived(self, y: Tensor) -> None:
        self.linear.accelerator.launch(lambda: self._out.add_(y))

    def result(self) -> Tensor:
        y = self._out.view(*self._lead, self.linear.host.rows)
        return y if self.linear.bias is None else y + self.linear.bias

    def _input(self, columns: tuple[int, int]) -> DeviceInput:
        """Return these columns of the input, (M, n)."""
        x = self._there[0]
        return device_input(x.reshape(-1, x.shape[-1])[:, slice(*columns)].contiguous())


def with_streamed(linear: HeteroLinear, chunk: Chunk, launch: Callable[[DeviceRows], None]) -> None:
    """Launch work with a streamed chunk."""
    assert linear.streams is not None
    if not linear.streams.has_ready(chunk):
        # The ring may be waiting for launched work, which a simulated device only does when asked to.
        linear.accelerator.settle()
    with linear.streams.take(chunk) as rows:
        launch(rows)
