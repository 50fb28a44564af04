"""Lossless speculative decoding: drafted tokens are verified in one pass of the target model.

A drafted token is accepted only if the sampler draws exactly that token, so replies, greedy or sampled, do not change.
The noise of a draw is the same for target and draft model (core/generation/chance.py), so a draft model can predict the
draw itself instead of only the most likely token. Drafters compete by their measured gain, and pause while they lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.generation.sampler import checked_logits

# Number of plain passes to time before the first draft. LEAST_TIMED suffice if they take TIMED_S together: the times of
# long passes differ less, and each costs more.
TIMED_PASSES, LEAST_TIMED, TIMED_S = 4, 2, 0.2
# A drafter with less gain than this over its last passes pauses for REST passes, doubled at each further pause.
WORTHWHILE = 1.03
REST, LONGEST_REST = 24, 768
# The prior gain of a drafter, initially and after a pause; it counts as ASSUMED_PASSES plain passes.
AT_FIRST, AFTER_REST = 1.5, 1.1
ASSUMED_PASSES = 3
# The decay per pass of a drafter's record, and of the time of a plain pass.
MEMORY, PLAIN_MEMORY = 0.95, 0.7
# After this many passes without a draft, rows are divided for single-token passes again.
HOLD_PASSES = 8


Guess = Callable[[Tensor, Sequence[int]], tuple[int, float]]
"""(scores (vocabulary,), ids so far) -> the next id as the sampler would draw it, and its probability by the scores."""


def likeliest(scores: Tensor, ids: Sequence[int]) -> tuple[int, float]:
    """Guess greedily from scores (vocabulary,): return the most likely token and its probability."""
    chances = torch.softmax(checked_logits(scores), dim=-1)
    token = int(chances.argmax())
    return token, float(chances[token])


class Drafter(Protocol):
    """Proposes continuations. `name` is shown to users."""

    name: str

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Prepare for drafting after `ids`, which the target has just read; not counted as drafting time.

        `guess` draws tokens from a draft model's scores.
        """

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return at most `room` tokens that may follow `ids`; an empty list if there is no basis for a guess."""

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Report the outcome of the last draft. `draft` and `check`: its times, as multiples of a plain pass."""


class Record:
    """A drafter's recent gain, and the number of passes for which it still pauses."""

    def __init__(self) -> None:
        self.resting = 0
        self._rest = REST
        self._tokens = self._spent = 0.0
        self._assume(AT_FIRST)

    @property
    def gain(self) -> float:
        """Return the speedup over plain decoding."""
        return self._tokens / self._spent

    def add(self, tokens: int, spent: float) -> None:
        """Count a pass that gave `tokens` and took `spent` plain passes, including drafting."""
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
    """The drafters of one reply and their totals: `passes`, `tokens` emitted, `drafted` and `taken` (accepted)."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = tuple((drafter, Record()) for drafter in drafters)
        self._used: tuple[Drafter, Record] | None = None
        self._draft_s = 0.0
        self._plain_s = self._timed_s = 0.0
        self._timed = 0
        self._since_draft = HOLD_PASSES
        self.passes = self.tokens = self.drafted = self.taken = 0
        self.drafter = ""

    @property
    def tokens_per_pass(self) -> float | None:
        """Return the mean number of tokens per pass; None before the first pass."""
        return self.tokens / self.passes if self.passes else None

    @property
    def acceptance(self) -> float | None:
        """Return the share of drafted tokens that were accepted; None if none was drafted."""
        return self.taken / self.drafted if self.drafted else None

    @property
    def expects_drafts(self) -> bool:
        """Return whether the next passes are likely to have several rows; the ring buffer then fetches for these."""
        return self._since_draft < HOLD_PASSES

    def prepare(self, ids: Sequence[int], guess: Guess = likeliest) -> None:
        """Prepare the drafters after prefill of `ids`. `guess` draws from draft scores like the reply's sampler."""
        for drafter, _ in self._drafters:
            drafter.prepare(ids, guess)

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the best drafter's proposal for the tokens after `ids`: at most `room` tokens, often none."""
        self._used = None
        for _, record in self._drafters:
            record.resting -= record.resting > 0
        if room < 1 or not self._is_timed:
            return []
        awake = [one for one in self._drafters if not one[1].resting]
        for drafter, record in sorted(awake, key=lambda one: -one[1].gain):
            began = time.perf_counter()
            if proposal := drafter.draft(ids, room):
                self._used, self._draft_s = (drafter, record), time.perf_counter() - began
                return proposal
        return []

    def passed(self, drafted: int, taken: int, seconds: float) -> None:
        """Record a pass that verified `drafted` tokens, of which `taken` were accepted."""
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

    @property
    def _is_timed(self) -> bool:
        """Return whether the time of a plain pass is known well enough to judge drafts by it."""
        return self._timed >= (LEAST_TIMED if self._timed_s >= TIMED_S else TIMED_PASSES)

    def _time_plain(self, seconds: float) -> None:
        seconds = max(seconds, 1e-9)
        before = self._plain_s if self._timed else seconds
        self._plain_s = PLAIN_MEMORY * before + (1 - PLAIN_MEMORY) * seconds
        self._timed += 1
        self._timed_s += seconds
