"""Drafting with a second, faster model: the same one at fewer bits, or another with the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.generation.generate import PREFILL_CHUNK
from core.generation.guesses import Guesses
from core.generation.speculation import Guess, likeliest
from core.layers.kv_cache import KVCache
from core.layers.kv_mirror import MirroredCache
from core.model.language_model import LanguageModel
from core.planning.speculation import MOST_ROWS


class ChainDrafter:
    """Base of drafters that use a model: guesses token after token, as long as that pays."""

    def __init__(self, name: str, vocabulary: int, guesses: Guesses | None = None) -> None:
        """`vocabulary`: number of ids common to this model and the target; embedding tables may be padded further.

        `guesses`: statistics of this model from earlier replies.
        """
        self.name = name
        self._vocabulary = vocabulary
        self._guesses = guesses or Guesses()
        self._guess: Guess = likeliest
        self._confidences: list[float] = []

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Prepare for a reply after `ids`, which the target has read."""
        self._guess = guess

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """Update the acceptance statistics and costs."""
        self._guesses.learn(self._confidences, taken, draft, check)

    def _begin(self) -> None:
        self._confidences = []

    def _next(self, scores: Tensor, ids: Sequence[int]) -> int:
        """Return the guess from scores (vocabulary,) for the token after `ids`, and note its confidence."""
        token, confidence = self._guess(scores[: self._vocabulary], ids)
        self._confidences.append(confidence)
        return token

    def _goes_on(self, room: int) -> bool:
        """Return whether to guess one more token."""
        count = len(self._confidences)
        return count < room and (count == 0 or self._guesses.pays(self._confidences))


class ModelDrafter(ChainDrafter):
    """A Drafter that decodes with `model`, which has its own KV cache."""

    def __init__(
        self, name: str, model: LanguageModel, cache: KVCache, vocabulary: int, guesses: Guesses | None = None
    ) -> None:
        super().__init__(name, vocabulary, guesses)
        self._model = model
        self._cache = cache

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Prefill the draft model with all of `ids` except the last."""
        super().prepare(ids, guess)
        known = self._cache.reuse(ids)
        for start in range(known, len(ids) - 1, PREFILL_CHUNK):
            self._model.forward(ids[start : min(start + PREFILL_CHUNK, len(ids) - 1)], self._cache)

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return a continuation of `ids`, as long as guessing pays."""
        return self._continue(ids, self._cache.reuse(ids), room)

    def _continue(self, ids: Sequence[int], known: int, room: int) -> list[int]:
        self._begin()
        told, feed = list(ids), ids[known:]
        if max(feed) >= self._vocabulary:
            return []
        while self._goes_on(room):
            logits = self._model.forward(feed, self._cache, divide_for=MOST_ROWS)
            if len(told) == len(ids):
                self._model.mark(self._cache, briefly=True)
            feed = [self._next(logits[-1], told)]
            told += feed
        return told[len(ids) :]


class SelfDrafter(ModelDrafter):
    """Drafts with the same model at fewer bits, on the target's own KV cache.

    Drafted entries are removed from the cache afterwards. Drafts thus start from the target's exact states, and nothing
    is read twice.
    """

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Prepare for a reply after `ids`; the target's prefill has filled the shared cache."""
        ChainDrafter.prepare(self, ids, guess)

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return a continuation of `ids`; the target's cache holds all of them except the last."""
        known = len(self._cache.tokens)
        self._model.mark(self._cache, briefly=True)
        try:
            return self._continue(ids, known, room)
        finally:
            self._cache.rewind(known)


class MirrorDrafter(SelfDrafter):
    """A SelfDrafter on the CPU, for a target whose KV cache lies on a device: it drafts on a copy of it in RAM."""

    def __init__(
        self, name: str, model: LanguageModel, mirrored: MirroredCache, vocabulary: int, guesses: Guesses | None = None
    ) -> None:
        super().__init__(name, model, mirrored.own, vocabulary, guesses)
        self._mirrored = mirrored

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """Prepare for a reply after `ids`: copy what the target's prefill has added."""
        super().prepare(ids, guess)
        self._mirrored.current()

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return a continuation of `ids`; the target's cache holds all of them except the last."""
        self._cache = self._mirrored.current()
        return super().draft(ids, room)
