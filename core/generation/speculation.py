"""Lossless speculation: drafted tokens are checked in one pass with the certain one, and kept only where right.

A drafted token is taken only if it is what the sampler draws there anyway, so replies stay what they are, greedy and
sampled ones. What decides a draw is the same for whoever drafts (core/generation/chance.py), so a model that drafts
guesses the draw and not only the likeliest token. Several drafters compete by what they were measured to gain, and all
rest where they lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.generation.sampler import checked_logits

# Passes of one token that are timed before the first draft.
TIMED_PASSES = 4
# A drafter must have paid this much over its last passes, or it rests for REST passes, longer each time.
WORTHWHILE = 1.03
REST, LONGEST_REST = 24, 768
# What a drafter is taken to gain before it was tried, and when it is tried again; it counts as so many plain passes.
AT_FIRST, AFTER_REST = 1.5, 1.1
ASSUMED_PASSES = 3
# The weight of what was seen before at each pass, with a draft and without.
MEMORY, PLAIN_MEMORY = 0.95, 0.7
# After this many passes without a draft, rows are divided for one token again.
HOLD_PASSES = 8


Guess = Callable[[Tensor, Sequence[int]], tuple[int, float]]
"""(scores (vocabulary,), ids so far) -> the next id as the sampler would draw it, and its probability by the scores."""


def likeliest(scores: Tensor, ids: Sequence[int]) -> tuple[int, float]:
    """The Guess of greedy replies, for scores (vocabulary,)."""
    chances = torch.softmax(checked_logits(scores), dim=-1)
    token = int(chances.argmax())
    return token, float(chances[token])


class Drafter(Protocol):
    """Proposes what may come next. `name` is shown to users."""

    name: str

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Get ready to draft after `ids`, which were just read; not counted as drafting. Drafts are what `guess` makes
        of scores."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow `ids`; none where there is nothing to go by."""

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Tell what became of the last draft; its seconds and those of the check, as multiples of a plain pass."""


class Record:
    """What one drafter has gained lately, and for how many more passes it rests."""

    def __init__(self) -> None:
        self.resting = 0
        self._rest = REST
        self._tokens = self._spent = 0.0
        self._assume(AT_FIRST)

    @property
    def gain(self) -> float:
        """How many times as fast as plain decoding."""
        return self._tokens / self._spent

    def add(self, tokens: int, spent: float) -> None:
        """Count a pass that gave so many tokens in the time of `spent` plain passes, drafting included."""
        self._tokens = MEMORY * self._tokens + tokens
        self._spent = MEMORY * self._spent + spent
        if self.gain < WORTHWHILE:
            self.resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
            self._assume(AFTER_REST)
        elif tokens > 1:
            self._rest = REST

    def _assume(self, gain: float) -> None:
        self._tokens, self._spent = gain * ASSUMED_PASSES, float(ASSUMED_PASSES)


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

    def prepare(self, ids: Sequence[int], guess: Guess = likeliest) -> None:
        """The prompt was read; `guess` makes of a draft's scores what the reply's sampler makes of the model's."""
        for drafter, _ in self._drafters:
            drafter.prepare(ids, guess)

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
        record.add(1 + taken, (self._draft_s + seconds) / self._plain_s)
        drafter.checked(drafted, taken, self._draft_s / self._plain_s, seconds / self._plain_s)

    def _time_plain(self, seconds: float) -> None:
        seconds = max(seconds, 1e-9)
        before = self._plain_s if self._timed else seconds
        self._plain_s = PLAIN_MEMORY * before + (1 - PLAIN_MEMORY) * seconds
        self._timed += 1
