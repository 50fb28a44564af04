"""Captured device work that is replayed by one call, or by a few, without Python between its operations.

A graph holds addresses only: its inputs and outputs must stay where they were during the capture. Work that cannot be
captured, because the host takes part in it, is left out: the work is then captured as one graph up to each of these
gaps, and one from the last gap to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Leave = Callable[[Tensor], Tensor]
"""Called by captured work at a gap, with what the gap reads (...); returns the tensor that will hold its result."""
Work = Callable[..., Tensor]
"""(leave, tensors on the device) -> a tensor there. Must not synchronise with the host."""
Pool = tuple[int, int] | None
"""The id of a graph's memory that another graph may share; None = its own."""


class Graph(Protocol):
    """A torch graph of any maker's device."""

    def pool(self) -> tuple[int, int]:
        """Return the id of the memory that the captured work uses."""

    def capture_end(self) -> None:
        """End the capture. Raises RuntimeError if something in it could not be captured."""

    def replay(self) -> None:
        """Enqueue the captured work on the current stream."""

    def reset(self) -> None:
        """Free the memory of the captured work."""


@dataclass(frozen=True)
class Part:
    """A graph, and the tensor (...) of its memory that the next gap or the caller reads."""

    graph: Graph
    result: Tensor


class Recording:
    """Captures work part by part."""

    def __init__(self, begin: Callable[[Pool], Graph], pool: Pool, back: Tensor | None) -> None:
        """`begin`: makes a graph and starts its capture; `back`: the tensor (...) that holds the result of any gap."""
        self._begin = begin
        self._pool = pool
        self._back = back
        self._parts: list[Part] = []
        self._open: Graph | None = None

    def of(self, work: Work, inputs: Sequence[Tensor]) -> list[Part]:
        """Capture the work on these tensors (...). Raises RuntimeError, and what `work` raises."""
        self._open = self._begin(self._pool)
        try:
            result = work(self._leave, *inputs)
        except BaseException:
            if self._open is not None:
                self._open.capture_end()
            raise
        self._end(result)
        return self._parts

    def _leave(self, x: Tensor) -> Tensor:
        if self._back is None:
            raise ValueError("no gap was announced")
        self._end(x)
        self._open = self._begin(self._pool or self._parts[0].graph.pool())
        return self._back

    def _end(self, result: Tensor) -> None:
        graph, self._open = self._open, None
        assert graph is not None
        graph.capture_end()
        self._parts.append(Part(graph, result))


class Replay:
    """Captured work with its input and output tensors on the device. `nbytes`: of device memory that it took."""

    def __init__(
        self, parts: Sequence[Part], inputs: Sequence[Tensor], back: Tensor | None,
        put: Callable[[Tensor, Tensor], None], nbytes: int = 0,
    ) -> None:  # fmt: skip
        """`put`: overwrites a device tensor with another tensor, from the host or the device, in launch order."""
        self.nbytes = nbytes
        self._parts: Sequence[Part] = parts
        self._inputs = inputs
        self._back = back
        self._put = put

    def __call__(self, *values: Tensor, gaps: Sequence[Callable[[Tensor], Tensor]] = ()) -> Tensor:
        """Replay with these tensors (...) as inputs, of the host or the device.

        `gaps`: what to compute between the parts, in order. The result, on the device, is valid until the next call.
        """
        for there, value in zip(self._inputs, values, strict=True):
            self._put(there, value)
        *before, last = self._parts
        for part, gap in zip(before, gaps, strict=True):
            part.graph.replay()
            assert self._back is not None
            self._put(self._back, gap(part.result))
        last.graph.replay()
        return last.result

    @property
    def pool(self) -> tuple[int, int]:
        """Return the id of its memory, from which other graphs may take what is spare between replays."""
        return self._parts[0].graph.pool()

    def drop(self) -> None:
        """Free the memory. The replay must not be called afterwards."""
        for part in self._parts:
            part.graph.reset()
        self._parts = ()
