"""Drafting with an assistant, which continues from the target's last state and reads the target's KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.generation.guesses import Guesses
from core.generation.model_drafter import ChainDrafter
from core.layers.kv_cache import KVCache
from core.model.assistant import Lent, lent_by, pass_of
from core.model.language_half import text_config
from core.model.language_model import LanguageModel
from core.planning.speculation import MOST_ROWS


class AssistantReading:
    """What an assistant knows of its target: the states of the newest tokens, and where the rest is found."""

    def __init__(self, assistant: LanguageModel, target: LanguageModel) -> None:
        """Raises ModelUnreadable if the assistant's weights are damaged."""
        self._assistant, self._target = assistant, target
        self._pass = pass_of(assistant.module)
        self._empty = KVCache(assistant.module.config, MOST_ROWS)
        self._window = text_config(assistant.module.config).sliding_window
        self._end = 0  # number of tokens up to the last state
        self._text: list[int] = []
        self._states = torch.empty(0)

    def see(self, ids: Sequence[int], states: Tensor) -> None:
        """Take the states (n, B) of the last norm after a pass, when the target's cache holds `ids`."""
        self._states = states[-MOST_ROWS:]
        self._end, self._text = len(ids), list(ids[-len(self._states) :])

    def begin(self, ids: Sequence[int], cache: KVCache) -> bool:
        """Prepare a draft after `ids`, all of which except the last are in the target's cache.

        Returns whether there is a basis for it: the state of the token before the last.
        """
        count = len(ids) - 1 - (self._end - len(self._text))
        if not 0 < count <= len(self._text) or self._text[:count] != list(ids[-1 - count : -1]):
            return False
        module = self._target.module
        states = lent_by(module.config, cache, self._window)
        state = self._states[None, count - 1 : count]
        self._pass.begin(Lent(module.get_input_embeddings(), state, states, len(ids) - 1))
        return True

    def end(self) -> None:
        """End a draft."""
        self._pass.end()

    def step(self, id: int) -> Tensor:
        """Return the scores (vocabulary,) of the token after `id`, which is the last one or was drafted."""
        self._empty.reset()
        return self._assistant.forward([id], self._empty)[-1]


class AssistantDrafter(ChainDrafter):
    """Drafts a chain for the model whose cache is `target`; the assistant's own state leads from token to token."""

    def __init__(
        self, name: str, reading: AssistantReading, target: KVCache, vocabulary: int, guesses: Guesses | None = None
    ) -> None:
        super().__init__(name, vocabulary, guesses)
        self._reading, self._target = reading, target

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Return a continuation of `ids`, as long as guessing pays."""
        try:
            return self._chain(ids, room) if self._reading.begin(ids, self._target) else []
        finally:
            self._reading.end()

    def _chain(self, ids: Sequence[int], room: int) -> list[int]:
        self._begin()
        told = list(ids)
        while self._goes_on(room):
            told.append(self._next(self._reading.step(told[-1]), told))
        return told[len(ids) :]
