"""Drafts by a second, faster model: the same one in fewer bits, or another of the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.generation.sampler import checked_logits
from core.layers.kv_cache import KVCache
from core.model.language_model import LanguageModel
from core.planning.speculation import LIKELY_ACCEPTANCE, MOST_ROWS, Prices, best_size

# The weight of what was seen before at each check.
MEMORY, PRICE_MEMORY = 0.9, 0.7
# A draft ends where its model is less sure than this of its next token: what follows would hardly be taken.
LEAST_CONFIDENCE = 0.5
PREFILL_CHUNK = 512
FIRST_SIZE = 3


class GreedyDrafter:
    """What drafters of any model have in common: they draft its likeliest tokens, as many as pay."""

    def __init__(self, name: str, vocabulary: int) -> None:
        """`vocabulary`: how many ids this model and the target both know; the tables of one may be padded further."""
        self.name = name
        self._vocabulary = vocabulary
        self._acceptance = LIKELY_ACCEPTANCE
        self._size = FIRST_SIZE
        self._prices: Prices | None = None

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Learn how often drafts are right, and draft as many as that makes best."""
        for number in range(min(taken + 1, drafted)):
            self._acceptance = MEMORY * self._acceptance + (1 - MEMORY) * (number < taken)
        seen = Prices(draft / max(drafted, 1), max(0.0, check - 1) / max(drafted, 1))
        self._prices = seen if self._prices is None else _mixed(self._prices, seen)
        self._size = best_size(self._acceptance, self._prices)

    def _likeliest(self, scores: Tensor) -> tuple[int, bool]:
        """The token that these scores (vocabulary,) make likeliest, and whether one may be drafted behind it."""
        confidence, token = torch.softmax(checked_logits(scores[: self._vocabulary]), dim=-1).max(-1)
        return int(token), float(confidence) >= LEAST_CONFIDENCE


def _mixed(before: Prices, now: Prices) -> Prices:
    draft = PRICE_MEMORY * before.draft + (1 - PRICE_MEMORY) * now.draft
    return Prices(draft, PRICE_MEMORY * before.row + (1 - PRICE_MEMORY) * now.row)


class ModelDrafter(GreedyDrafter):
    """A Drafter that decodes greedily with `model`, which keeps a KV cache of its own."""

    def __init__(self, name: str, model: LanguageModel, cache: KVCache, vocabulary: int) -> None:
        super().__init__(name, vocabulary)
        self._model = model
        self._cache = cache

    def prepare(self, ids: Sequence[int]) -> None:
        """Read `ids` but for the last."""
        known = self._cache.reuse(ids)
        for start in range(known, len(ids) - 1, PREFILL_CHUNK):
            self._model.forward(ids[start : min(start + PREFILL_CHUNK, len(ids) - 1)], self._cache)

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """The likeliest continuation of `ids`, as long as the model is sure of it."""
        known = self._cache.reuse(ids)
        return self._continue(ids[known:], room)

    def _continue(self, feed: Sequence[int], room: int) -> list[int]:
        drafted = list[int]()
        if max(feed) >= self._vocabulary:
            return drafted
        for _ in range(min(self._size, room)):
            logits = self._model.forward(feed, self._cache, divide_for=MOST_ROWS)
            if not drafted:
                self._model.mark(self._cache, briefly=True)
            token, sure = self._likeliest(logits[-1])
            feed = [token]
            drafted += feed
            if not sure:
                break
        return drafted


class SelfDrafter(ModelDrafter):
    """Drafts with the same model in fewer bits, on the target's own KV cache: what it appends is cut off again, so its
    drafts begin from the target's exact states and nothing is read twice."""

    def prepare(self, ids: Sequence[int]) -> None:
        """The target has read them."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """The likeliest continuation of `ids`; the target's cache holds all of them but the last."""
        known = len(self._cache.tokens)
        self._model.mark(self._cache, briefly=True)
        try:
            return self._continue(ids[known:], room)
        finally:
            self._cache.rewind(known)
