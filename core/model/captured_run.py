"""A run of consecutive work of a pass that lies on a card: captured as one graph, and then replayed.

The longest run is the whole model (`core.model.captures`); in a divided model each run of layers that lie on the card
with their KV cache is one (`core.model.resident_run`). What differs between tokens reaches a replay in tensors that
stay where they are: the places of the KV cache that are written (`core.layers.kv_stretch`), and the piece's inputs.

A captured piece is compared with an ordinary one before it is used, so no list of supported architectures is needed. It
is captured anew when the stretch of the KV cache grows, and it ends with the plan. Whatever goes wrong with captures,
the ordinary pass has already been computed.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.accelerators.graph import Replay, Work
from core.layers.kv_stretch import Stretch
from core.planning.capture import MOST_ROWS, ROWS_TOGETHER

FIRST_PASSES = 4
"""Ordinary passes before a capture, which takes as long as several of them."""
MOST_UNUSED = 2
"""After so many captures for a number of rows that were never replayed, because something else had changed, no more."""
EXACT, ROUNDED = 1e-3, 0.05
"""Largest relative difference (norms) to an ordinary pass in 32 and 16 bits: sums are added in another order."""

log = logging.getLogger(__name__)

Compute = Callable[[Tensor, Mapping[int, Tensor], Sequence[Tensor]], Tensor]
"""(places, masks by window, inputs), all on the device -> the result there: see `core.layers.kv_stretch`."""


@dataclass(frozen=True)
class Piece:
    """The work of a run in one pass. `inputs`: tensors whose values differ between passes. `likeness`: all that must be
    as it was when `compute` was captured, compared by ==. `ordinary`: does the same without a graph, for this pass."""

    inputs: Sequence[Tensor]
    likeness: object
    compute: Compute
    ordinary: Callable[[], Tensor]


@dataclass(frozen=True)
class Captured:
    """A captured piece, and what it depends on besides its inputs."""

    replay: Replay
    likeness: object
    buffers: Sequence[Tensor]
    seen: tuple[int, ...]

    def suits(self, piece: Piece, stretch: Stretch) -> bool:
        """Return whether it does the same work on the same memory."""
        same = self.seen == stretch.seen and len(self.buffers) == len(stretch.buffers)
        return same and all(map(operator.is_, self.buffers, stretch.buffers)) and self.likeness == piece.likeness


class GraphRoom:
    """The graphs of one plan, which share memory because they never run at the same time: ROWS_TOGETHER rows in all."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._kept: dict[Replay, int] = {}

    def has_room(self, rows: int) -> bool:
        """Return whether one more graph for so many rows may be captured."""
        return rows <= MOST_ROWS and sum(self._kept.values()) + rows <= ROWS_TOGETHER

    def captured(self, work: Work, inputs: Sequence[Tensor], rows: int) -> Replay | None:
        """Capture work on these tensors (...): see `Accelerator.captured`."""
        replay = self._accelerator.captured(work, inputs, next(iter(self._kept), None))
        if replay is not None:
            self._kept[replay] = rows
        return replay

    def drop(self, replay: Replay) -> None:
        """Free one of them."""
        del self._kept[replay]
        replay.drop()


class CapturedRun:
    """Computes the pieces of one run, by replays where possible; captures one graph for each number of rows."""

    def __init__(self, name: str, room: GraphRoom) -> None:
        """`name`: for the log."""
        self.given_up = False
        self._name = name
        self._room = room
        self._captured: dict[int, Captured] = {}
        self._ordinary = Counter[int]()
        self._unused = Counter[int]()

    def result(self, piece: Piece, stretch: Stretch) -> Tensor:
        """Return the piece's result (...) on the device, valid until the next pass.

        `stretch`: what the piece uses of the cache. Raises NotEnoughMemory, DeviceLost, and what `ordinary` raises.
        """
        if self.given_up:
            return piece.ordinary()
        captured = self._captured.get(stretch.rows)
        if captured is not None and captured.suits(piece, stretch):
            self._unused[stretch.rows] = 0
            found = captured.replay(stretch.places, *piece.inputs)
            stretch.advance()
            return found
        self._ordinary[stretch.rows] += 1
        expected = piece.ordinary()
        # At the end of a stretch the comparison cannot detect a piece that confuses its length with the tokens'.
        if self._ordinary[stretch.rows] > FIRST_PASSES and not stretch.ends_here:
            self._forget(stretch.rows)
            if self._room.has_room(stretch.rows):
                self._try(piece, stretch, expected)
        return expected

    def drop(self) -> None:
        """Free all captured work and capture no more."""
        self.given_up = True
        for rows in list(self._captured):
            self._forget(rows)

    def _try(self, piece: Piece, stretch: Stretch, expected: Tensor) -> None:
        """Capture the piece and keep it if it agrees with the ordinary one."""
        self._unused[stretch.rows] += 1
        if self._unused[stretch.rows] > MOST_UNUSED or not self._agrees(piece, stretch, expected):
            log.info("No captured passes of %s", self._name)
            self.drop()

    def _agrees(self, piece: Piece, stretch: Stretch, expected: Tensor) -> bool:
        """Capture the piece, replay it once and compare; the cache keeps what the ordinary one wrote."""

        def work(places: Tensor, *inputs: Tensor) -> Tensor:
            with stretch.written_at(places) as masks:
                return piece.compute(places, masks, inputs)

        try:
            with stretch.kept():
                stretch.blank()
                replay = self._room.captured(work, (stretch.places, *piece.inputs), stretch.rows)
                if replay is None:
                    return False
                self._captured[stretch.rows] = Captured(replay, piece.likeness, stretch.buffers, stretch.seen)
                return _agree(replay(stretch.places, *piece.inputs).cpu(), expected)
        # Each architecture fails in its own way; a lost device raises again in the next ordinary operation.
        except Exception as error:  # noqa: BLE001
            log.info("A pass of %s cannot be captured: %s", self._name, error)
            return False

    def _forget(self, rows: int) -> None:
        if (captured := self._captured.pop(rows, None)) is not None:
            self._room.drop(captured.replay)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Return whether a result (...) on the host equals that on the device, except for rounding."""
    limit = EXACT if expected.dtype in (torch.float32, torch.float64) else ROUNDED
    right = expected.cpu().float()
    return bool((found.float() - right).norm() <= limit * right.norm())
