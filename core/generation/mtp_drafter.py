"""Drafting with a model's own multi-token prediction (MTP) head, which continues from the model's hidden states."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from core.generation.generate import PREFILL_CHUNK
from core.generation.guesses import Guesses
from core.generation.model_drafter import ChainDrafter
from core.layers.kv_cache import KVCache, common_prefix
from core.model.language_model import LanguageModel
from core.model.mtp import Join
from core.planning.speculation import MOST_ROWS

MOST_WAITING = 64
"""At most this many states wait for a draft; beyond that they are read without one."""


class MtpReading:
    """The reading state of an MTP head in a conversation.

    An entry of its KV cache combines the model's hidden state at a position with the token that follows. A state waits
    until its next token is certain.
    """

    def __init__(self, head: LanguageModel, join: Join, cache: KVCache) -> None:
        self._head, self._join, self._cache = head, join, cache
        head.on_states = self._keep_last
        self._text: list[int] = []  # ids at all positions seen
        self._read: list[int] = []  # positions of the cache's entries
        self._waiting: list[int] = []
        self._states = torch.empty(0)
        self._last = torch.empty(0)

    def begin(self, ids: Sequence[int]) -> None:
        """Begin a reply to `ids`: drop everything after the common prefix with the text read so far."""
        same = common_prefix(self._text, ids)
        self._cut(bisect_left(self._read, same - 1))
        self._drop(same)
        del self._text[same:]

    def see(self, ids: Sequence[int], states: Tensor) -> None:
        """Take the states (n, H) of the last norm after a pass, when the model's cache holds `ids`."""
        begin = len(ids) - len(states)
        if min(ids[begin:]) < 0:  # a picture has no next token
            return
        self._drop(begin)
        self._text[begin:] = ids[begin:]
        first = max(begin, self._read[-1] + 1 if self._read else 0, self._waiting[-1] + 1 if self._waiting else 0)
        fresh = states[first - begin :]
        self._states = torch.cat([self._states, fresh]) if self._waiting else fresh
        self._waiting += range(first, len(ids))
        # All prompt tokens are certain; those of a pass with few rows may be drafts.
        certain = len(ids) if len(states) > MOST_ROWS else begin + 1
        if len(states) > MOST_ROWS or len(self._waiting) > MOST_WAITING:
            self.read(ids[:certain])

    def read(self, ids: Sequence[int]) -> Tensor | None:
        """Read all waiting states whose next token is in `ids`.

        Returns the scores (vocabulary,) of the token after `ids`, or None if the state of its predecessor is unknown.
        """
        scores = None
        while due := bisect_left(self._waiting, len(ids) - 1):
            places = self._waiting[: min(due, PREFILL_CHUNK)]
            scores = self.step([ids[place + 1] for place in places], self._states[: len(places)])
            self._read += places
            self._states, self._waiting = self._states[len(places) :], self._waiting[len(places) :]
        return scores if self._read and self._read[-1] == len(ids) - 2 else None

    def step(self, ids: Sequence[int], states: Tensor | None = None) -> Tensor:
        """Run the head on ids and the hidden states (n, H) before them; by default on its own last state."""
        self._join.states = self._last if states is None else states
        return self._head.forward(ids, self._cache, divide_for=MOST_ROWS)[-1]

    def forget_drafts(self) -> None:
        """Remove the drafted entries from the cache."""
        self._cache.rewind(len(self._read))

    def _keep_last(self, ids: Sequence[int], states: Tensor) -> None:
        self._last = states[-1:]

    def _cut(self, entries: int) -> None:
        del self._read[entries:]
        self._cache.rewind(entries)

    def _drop(self, place: int) -> None:
        """Discard waiting states from this position on."""
        kept = bisect_left(self._waiting, place)
        del self._waiting[kept:]
        self._states = self._states[:kept]


class MtpDrafter(ChainDrafter):
    """Drafts a chain: the first guess is based on the model's hidden state, each further one on the head's own last."""

    def __init__(self, name: str, reading: MtpReading, vocabulary: int, guesses: Guesses | None = None) -> None:
        super().__init__(name, vocabulary, guesses)
        self._reading = reading

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return a continuation of `ids`, as long as guessing pays."""
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
