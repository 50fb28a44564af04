"""Drafts by a model's own MTP head, which goes on from what the model made of the tokens that it has read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from core.generation.guesses import Guesses
from core.generation.model_drafter import PREFILL_CHUNK, ChainDrafter
from core.layers.kv_cache import KVCache, common_prefix
from core.model.language_model import LanguageModel
from core.model.mtp import Join
from core.planning.speculation import MOST_ROWS

MOST_WAITING = 64
"""States that wait for a draft; where there are more, they are read without one."""


class MtpReading:
    """What an MTP head has read of a conversation. One entry of its KV cache is the model's state at a place of the
    text with the token that follows it; a state whose next token is not certain yet waits."""

    def __init__(self, head: LanguageModel, join: Join, cache: KVCache) -> None:
        self._head, self._join, self._cache = head, join, cache
        head.on_states = self._keep_last
        self._text: list[int] = []  # the ids that the places are of
        self._read: list[int] = []  # the places of the cache's entries
        self._waiting: list[int] = []
        self._states = torch.empty(0)
        self._last = torch.empty(0)

    def begin(self, ids: Sequence[int]) -> None:
        """A reply to `ids` begins: forget what was read of other texts."""
        same = common_prefix(self._text, ids)
        self._cut(bisect_left(self._read, same - 1))
        self._drop(same)
        del self._text[same:]

    def see(self, ids: Sequence[int], states: Tensor) -> None:
        """The model's cache holds `ids` after a pass whose last norm gave `states` (n, H)."""
        begin = len(ids) - len(states)
        if min(ids[begin:]) < 0:  # a picture has no token to go on with
            return
        self._drop(begin)
        self._text[begin:] = ids[begin:]
        first = max(begin, self._read[-1] + 1 if self._read else 0, self._waiting[-1] + 1 if self._waiting else 0)
        fresh = states[first - begin :]
        self._states = torch.cat([self._states, fresh]) if self._waiting else fresh
        self._waiting += range(first, len(ids))
        # A prompt's tokens are all certain; what a pass of few rows read may have been drafted.
        certain = len(ids) if len(states) > MOST_ROWS else begin + 1
        if len(states) > MOST_ROWS or len(self._waiting) > MOST_WAITING:
            self.read(ids[:certain])

    def read(self, ids: Sequence[int]) -> Tensor | None:
        """Read all states that wait for tokens of `ids`; the scores (vocabulary,) of what follows the last, None where
        its state is not known."""
        scores = None
        while due := bisect_left(self._waiting, len(ids) - 1):
            places = self._waiting[: min(due, PREFILL_CHUNK)]
            scores = self.step([ids[place + 1] for place in places], self._states[: len(places)])
            self._read += places
            self._states, self._waiting = self._states[len(places) :], self._waiting[len(places) :]
        return scores if self._read and self._read[-1] == len(ids) - 2 else None

    def step(self, ids: Sequence[int], states: Tensor | None = None) -> Tensor:
        """One pass of the head over ids and the states (n, H) before them, by default the one that it gave last."""
        self._join.states = self._last if states is None else states
        return self._head.forward(ids, self._cache, divide_for=MOST_ROWS)[-1]

    def forget_drafts(self) -> None:
        """Cut off what followed the certain tokens."""
        self._cache.rewind(len(self._read))

    def _keep_last(self, ids: Sequence[int], states: Tensor) -> None:
        self._last = states[-1:]

    def _cut(self, entries: int) -> None:
        del self._read[entries:]
        self._cache.rewind(entries)

    def _drop(self, place: int) -> None:
        """Let go of waiting states from this place on."""
        kept = bisect_left(self._waiting, place)
        del self._waiting[kept:]
        self._states = self._states[:kept]


class MtpDrafter(ChainDrafter):
    """Drafts a chain: the head's first guess is of the model's own state, each further one of the head's last."""

    def __init__(self, name: str, reading: MtpReading, vocabulary: int, guesses: Guesses | None = None) -> None:
        super().__init__(name, vocabulary, guesses)
        self._reading = reading

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """How `ids` may go on, as long as guessing pays."""
        try:
            return self._chain(ids, self._reading.read(ids), room)
        finally:
            self._reading.forget_drafts()

    def _chain(self, ids: Sequence[int], scores: Tensor | None, room: int) -> list[int]:
        self._begin()
        told = list(ids)
        while scores is not None:
            told.append(self._next(scores, told))
            scores = self._reading.step(told[-1:]) if self._goes_on(room) else None
        return told[len(ids) :]
