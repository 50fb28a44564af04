"""Consecutive layers of a pass, of which the last one computes all.

transformers calls one layer after the other. Those before the last return their input unchanged, and their calls are
recorded. An earlier pass must have shown that each layer's output goes directly to the next one.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

from core.errors import ModelFailed

Call = TypeVar("Call")


class Deferral(Generic[Call]):
    """The calls of layers in a pass that are not computed yet, and what earlier passes have shown.

    `calls`: of the deferred layers, in order. `direct`: the numbers of rows with which each layer's output was the
    next one's input.
    """

    def __init__(self, layers: int) -> None:
        self.calls: list[Call] = []
        self.direct: set[int] = set()
        self._layers = layers
        self._waiting: Tensor | None = None  # the first layer's input, while layers are deferred
        self._seen = 0
        self._last: Tensor | None = None

    def begin(self, x: Tensor | None) -> None:
        """Start a pass. `x` (1, n, H): the first layer's input if layers are to be deferred."""
        self.calls, self._waiting = [], x

    def awaits(self, x: Tensor) -> bool:
        """Return whether layers are deferred for x (1, n, H)."""
        return x is self._waiting

    def takes(self, place: int, x: Tensor) -> bool:
        """Return whether layers are deferred, so that layer `place` may join them with x (1, n, H).

        If the rows were changed between layers, or layers left out, passes are observed anew. Raises ModelFailed.
        """
        if self._waiting is None or (x is self._waiting and place == len(self.calls)):
            return self._waiting is not None
        self.begin(None)
        self.direct.clear()
        raise ModelFailed("The model computes something else than before.", "", "Send the message again.")

    def taken(self) -> list[Call]:
        """Return the calls of the deferred layers, which the caller computes now."""
        calls = self.calls
        self.begin(None)
        return calls

    def passed(self, place: int, x: Tensor, y: Tensor | None) -> None:
        """Record that layer `place` was computed and made y (1, n, H) from x; None: something else than such rows."""
        follows = place == 0 or (place == self._seen and x is self._last)
        self._seen, self._last = (place + 1, y) if y is not None and follows else (0, None)
        if self._seen == self._layers:
            self.direct.add(x.shape[1])

    def forget(self) -> None:
        """Release the tensors of a pass."""
        self.begin(None)
        self._seen, self._last = 0, None
