"""A run of consecutive work of a pass that lies on a card: captured as one graph, and then replayed.

The longest run is the whole model (`core.model.captures`); in a divided model each run of layers that lie on the card
with their KV cache is one (`core.model.resident_run`). What differs between tokens reaches a replay in tensors that
stay where they are: the places of the KV cache that are written (`core.layers.kv_stretch`), and the piece's inputs.
Work that the CPU shares is left out, as gaps between graphs.

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
from core.accelerators.graph import Leave, Replay, Work
from core.layers.kv_stretch import Stretch
from core.planning.capture import MOST_ROWS

FIRST_PASSES = 4
"""Ordinary passes before a capture, which takes as long as several of them."""
MOST_UNUSED = 2
"""After so many captures for a number of rows that were never replayed, because something else had changed, no more."""
EXACT, ROUNDED = 1e-3, 0.05
"""Largest relative difference (norms) to an ordinary pass in 32 and 16 bits: sums are added in another order."""

log = logging.getLogger(__name__)

Compute = Callable[[Leave, Tensor, Mapping[int, Tensor], Sequence[Tensor]], Tensor]
"""(leave, places, masks by window, inputs), all on the device -> the result there: see `core.layers.kv_stretch`.

`leave` is called at gaps."""


@dataclass(frozen=True)
class Gap:
    """Work in a piece that is not captured: in the ordinary pass, `compute` made `result` (...) from `given` (...)."""

    compute: Callable[[Tensor], Tensor]
    given: Tensor
    result: Tensor

    def again(self, x: Tensor) -> Tensor:
        """Return the same result; x (...) must be what was given, except for rounding. Raises ValueError."""
        if not _agree(x.cpu(), self.given):
            raise ValueError("what is computed before a gap differs")
        return self.result


@dataclass(frozen=True)
class Piece:
    """The work of a run in one pass. `inputs`: tensors whose values differ between passes. `likeness`: all that must be
    as it was when `compute` was captured, compared by ==. `ordinary`: does the same without a graph, for this pass.
    `gaps`: what that left out, in order; None if something else than tensors went through a gap."""

    inputs: Sequence[Tensor]
    likeness: object
    compute: Compute
    ordinary: Callable[[], Tensor]
    gaps: Callable[[], Sequence[Gap] | None] = tuple


@dataclass(frozen=True)
class Captured:
    """A captured piece, and what it depends on besides its inputs."""

    replay: Replay
    gaps: Sequence[Callable[[Tensor], Tensor]]
    likeness: object
    buffers: Sequence[Tensor]
    seen: tuple[int, ...]

    def suits(self, piece: Piece, stretch: Stretch) -> bool:
        """Return whether it does the same work on the same memory."""
        same = self.seen == stretch.seen and len(self.buffers) == len(stretch.buffers)
        return same and all(map(operator.is_, self.buffers, stretch.buffers)) and self.likeness == piece.likeness


class GraphRoom:
    """The graphs of one plan, which share memory because they never run at the same time: `limit` bytes in all.

    `taken`: bytes of device memory that they have. `full`: a graph was not captured because there was no room.
    """

    def __init__(self, accelerator: Accelerator, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.full = False
        self._accelerator = accelerator
        self._kept: list[Replay] = []

    def has_room(self, rows: int) -> bool:
        """Return whether one more graph for so many rows may be captured."""
        has_room = self.taken < self.limit
        self.full = self.full or not has_room
        return has_room and rows <= MOST_ROWS

    def captured(self, work: Work, inputs: Sequence[Tensor], gaps: Sequence[Gap]) -> Replay | None:
        """Capture work on these tensors (...): see `Accelerator.captured`."""
        back = gaps[0].result if gaps else None
        replay = self._accelerator.captured(work, inputs, next(iter(self._kept), None), back)
        if replay is not None:
            self._kept.append(replay)
            self.taken += replay.nbytes
        return replay

    def drop(self, replay: Replay) -> None:
        """Free one of them."""
        self._kept.remove(replay)
        replay.drop()

    def exchange(self, replay: Replay) -> None:
        """Free one of them, whose memory another may take. Raises DeviceLost."""
        before = self._accelerator.memory().untouched
        self.drop(replay)
        self._accelerator.release_cached()
        self.taken = max(0, self.taken - max(0, self._accelerator.memory().untouched - before))


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
            found = captured.replay(stretch.places, *piece.inputs, gaps=captured.gaps)
            stretch.advance()
            return found
        self._ordinary[stretch.rows] += 1
        expected = piece.ordinary()
        # At the end of a stretch the comparison cannot detect a piece that confuses its length with the tokens'.
        ready = self._ordinary[stretch.rows] > FIRST_PASSES and not stretch.ends_here
        if ready and (self._made_room(stretch.rows) or self._room.has_room(stretch.rows)):
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

        def work(leave: Leave, places: Tensor, *inputs: Tensor) -> Tensor:
            with stretch.written_at(places) as masks:
                return piece.compute(leave, places, masks, inputs)

        if (gaps := piece.gaps()) is None:
            return False
        try:
            with stretch.kept():
                stretch.blank()
                replay = self._room.captured(work, (stretch.places, *piece.inputs), gaps)
                if replay is None:
                    return False
                computes = [gap.compute for gap in gaps]
                self._captured[stretch.rows] = Captured(replay, computes, piece.likeness, stretch.buffers, stretch.seen)
                tried = replay(stretch.places, *piece.inputs, gaps=[gap.again for gap in gaps])
                return _agree(tried.cpu(), expected)
        # Each architecture fails in its own way; a lost device raises again in the next ordinary operation.
        except Exception as error:  # noqa: BLE001
            log.info("A pass of %s cannot be captured: %s", self._name, error)
            return False

    def _made_room(self, rows: int) -> bool:
        """Free the graphs for so many rows, so that others may be captured instead; return whether there were any."""
        if (captured := self._captured.pop(rows, None)) is not None:
            self._room.exchange(captured.replay)
        return captured is not None

    def _forget(self, rows: int) -> None:
        if (captured := self._captured.pop(rows, None)) is not None:
            self._room.drop(captured.replay)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Return whether a result (...) on the host equals that on the device, except for rounding."""
    limit = EXACT if expected.dtype in (torch.float32, torch.float64) else ROUNDED
    right = expected.cpu().float()
    return bool((found.float() - right).norm() <= limit * right.norm())
