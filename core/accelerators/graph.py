"""Captured device work that is replayed by one call, without Python between its operations.

A graph holds addresses only: its inputs and outputs must stay where they were during the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Work = Callable[..., Tensor]
"""Takes tensors on the device and returns one there. Must not synchronise with the host."""


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


class Replay:
    """Captured work with its input and output tensors on the device."""

    def __init__(
        self, graph: Graph, inputs: Sequence[Tensor], result: Tensor, put: Callable[[Tensor, Tensor], None]
    ) -> None:
        """`put`: overwrites a device tensor with another tensor, from the host or the device, in launch order."""
        self._graph = graph
        self._inputs = inputs
        self._result = result
        self._put = put

    def __call__(self, *values: Tensor) -> Tensor:
        """Replay with these tensors (...) as inputs, of the host or the device.

        The result, on the device, is valid until the next call.
        """
        for there, value in zip(self._inputs, values, strict=True):
            self._put(there, value)
        self._graph.replay()
        return self._result

    @property
    def pool(self) -> tuple[int, int]:
        """Return the id of its memory, from which other graphs may take what is spare between replays."""
        return self._graph.pool()

    def drop(self) -> None:
        """Free the memory. The replay must not be called afterwards."""
        self._graph.reset()
