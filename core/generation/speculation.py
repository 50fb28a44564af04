"""Lossless speculation: drafted tokens are checked in one pass with the certain one, and kept only where right.

A drafted token is taken only if it is what the sampler draws there anyway, so greedy replies stay what they are, and
sampled ones keep their distribution: the draft is certain of its token, for which this is the rejection sampling of
Leviathan et al. (2023). Several drafters compete by what they were measured to gain, and all rest where they lose.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

# Passes of one token that are timed before the first draft.
TIMED_PASSES = 4
# A drafter must have paid this much over its last passes, or it rests for REST passes, longer each time.
WORTHWHILE = 1.03
REST, LONGEST_REST = 24, 768
# What a drafter is taken to gain before it was tried, and when it is tried again.
AT_FIRST, AFTER_REST = 1.5, 1.1
MEMORY = 0.7
# After this many passes without a draft, rows are divided for one token again.
HOLD_PASSES = 8


class Drafter(Protocol):
    """Proposes what may come next. `name` is shown to users."""

    name: str

    def prepare(self, ids: Sequence[int]) -> None:
        """Get ready to draft after `ids`, which were just read; not counted as drafting."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow `ids`; none where there is nothing to go by."""

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Tell what became of the last draft; its seconds and those of the check, as multiples of a plain pass."""


class Record:
    """What one drafter has gained lately, and for how many more passes it rests."""

    def __init__(self) -> None:
        self.gain = AT_FIRST
        self.resting = 0
        self._rest = REST

    def add(self, gain: float, taken: int) -> None:
        """Count a pass that was `gain` times as fast as plain decoding."""
        self.gain = MEMORY * self.gain + (1 - MEMORY) * gain
        if self.gain < WORTHWHILE:
            self.resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
            self.gain = AFTER_REST
        elif taken:
            self._rest = REST


class Speculation:
    """The drafters of one reply, and what they have achieved: `passes` that gave `tokens`, of `drafted` `taken`."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = tuple((drafter, Record()) for drafter in drafters)
        self._used: tuple[Drafter, Record] | None = None
        self._draft_s = 0.0
        self._plain_s = 0.0
        self._timed = 0
        self._since_draft = HOLD_PASSES
        self.passes = self.tokens = self.drafted = self.taken = 0
        self.drafter = ""

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens that a pass gave on average; None before the first."""
        return self.tokens / self.passes if self.passes else None

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that were right; None where none was drafted."""
        return self.taken / self.drafted if self.drafted else None

    @property
    def expects_drafts(self) -> bool:
        """Whether the next passes are likely to have several rows: then the ring fetches for such, not for one."""
        return self._since_draft < HOLD_PASSES

    def prepare(self, ids: Sequence[int]) -> None:
        """The prompt was read."""
        for drafter, _ in self._drafters:
            drafter.prepare(ids)

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """The best drafter's proposal for what follows `ids`, at most `room` tokens; often none."""
        self._used = None
        for _, record in self._drafters:
            record.resting -= record.resting > 0
        if self._timed < TIMED_PASSES or room < 1:
            return []
        awake = [one for one in self._drafters if not one[1].resting]
        for drafter, record in sorted(awake, key=lambda one: -one[1].gain):
            began = time.perf_counter()
            if proposal := drafter.draft(ids, room):
                self._used, self._draft_s = (drafter, record), time.perf_counter() - began
                return proposal
        return []

    def passed(self, drafted: int, taken: int, seconds: float) -> None:
        """A pass is over that checked `drafted` tokens, of which `taken` were right."""
        self.passes += 1
        self.tokens += 1 + taken
        self._since_draft = 0 if drafted else self._since_draft + 1
        if self._used is None:
            self._time_plain(seconds)
            return
        drafter, record = self._used
        self.drafter = drafter.name
        self.drafted += drafted
        self.taken += taken
        spent = self._draft_s + seconds
        record.add((1 + taken) * self._plain_s / spent if spent > 0 else 1.0, taken)
        drafter.checked(drafted, taken, self._draft_s / self._plain_s, seconds / self._plain_s)

    def _time_plain(self, seconds: float) -> None:
        seconds = max(seconds, 1e-9)
        self._plain_s = MEMORY * self._plain_s + (1 - MEMORY) * seconds if self._timed else seconds
        self._timed += 1
