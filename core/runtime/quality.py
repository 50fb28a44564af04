"""Measures the quality loss of a format: prediction of a text, compared with the same model's weights as stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import BadRequest
from core.runtime.loaded_model import LoadedModel

WINDOW = 512
"""Tokens per window, each evaluated separately; its first quarter has too little context to be counted."""
LEAST_TOKENS = 64


@dataclass(frozen=True)
class Quality:
    """Results over `tokens` predicted tokens: perplexity, also with the weights as stored; how often both agree on the
    likeliest token (0-1); and the Kullback-Leibler divergence in nats."""

    perplexity: float
    exact_perplexity: float
    top1: float
    kl: float
    tokens: int


class Tally:
    """Sums of the losses over a text, window by window."""

    def __init__(self) -> None:
        self._exact_lost = self._lost = self._same = self._differ = 0.0
        self._count = 0

    def add(self, exact: Tensor, found: Tensor, window: Sequence[int]) -> None:
        """Add one window's log probabilities (positions, vocabulary) of both models, as returned by `foretold`."""
        wanted = torch.tensor(window[_uncounted(window) + 1 :])[:, None]
        self._exact_lost -= float(exact.gather(1, wanted).sum(dtype=torch.double))
        self._lost -= float(found.gather(1, wanted).sum(dtype=torch.double))
        self._same += float((exact.argmax(1) == found.argmax(1)).sum())
        self._differ += float((exact.exp() * (exact - found)).sum(dtype=torch.double))
        self._count += len(wanted)

    @property
    def quality(self) -> Quality:
        """The result of all windows so far, at least one."""
        count = self._count
        return Quality(
            perplexity=math.exp(self._lost / count),
            exact_perplexity=math.exp(self._exact_lost / count),
            top1=self._same / count,
            kl=self._differ / count,
            tokens=count,
        )


def compare(exact: LoadedModel, other: LoadedModel, ids: Sequence[int]) -> Quality:
    """Compare both models on the same text. Raises BadRequest if it is too short, and a pass's errors."""
    if len(ids) < LEAST_TOKENS:
        raise BadRequest("The text is too short to judge by.", "", "Choose a text of at least a page.")
    tally = Tally()
    for window in windows(ids):
        told = foretold(exact, window)
        tally.add(told, told if other is exact else foretold(other, window), window)
    return tally.quality


def windows(ids: Sequence[int]) -> list[list[int]]:
    """Divide the text into full windows; a text shorter than a window is a single one."""
    length = min(WINDOW, len(ids))
    return [list(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]


def foretold(model: LoadedModel, window: Sequence[int]) -> Tensor:
    """Return the log probabilities for every counted position, (positions, vocabulary)."""
    model.cache.reset()
    first, chunk = _uncounted(window), model.plan.prefill_chunk
    parts = [
        model.model.forward(window[start : start + chunk], model.cache, keep=min(chunk, len(window) - start))
        for start in range(0, len(window), chunk)
    ]
    return torch.cat(parts)[first:-1].float().log_softmax(1)


def _uncounted(window: Sequence[int]) -> int:
    return len(window) // 4
