"""What a format costs in quality: how well it foretells a text, beside the same model with its weights as stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import BadRequest
from core.runtime.loaded_model import LoadedModel

WINDOW = 512
"""Tokens that are read at a time, each window by itself; the first quarter has too little before it to count."""
LEAST_TOKENS = 64


@dataclass(frozen=True)
class Quality:
    """Over `tokens` foretold ones: perplexity, of the weights as stored too; how often both hold the same token for the
    likeliest (0-1); and by how much the distributions differ (Kullback-Leibler, in nats)."""

    perplexity: float
    exact_perplexity: float
    top1: float
    kl: float
    tokens: int


class Tally:
    """What is lost over a text, window by window."""

    def __init__(self) -> None:
        self._exact_lost = self._lost = self._same = self._differ = 0.0
        self._count = 0

    def add(self, exact: Tensor, found: Tensor, window: Sequence[int]) -> None:
        """Count one window's logarithms (positions, vocabulary), of both as `foretold` gives them."""
        wanted = torch.tensor(window[_uncounted(window) + 1 :])[:, None]
        self._exact_lost -= float(exact.gather(1, wanted).sum(dtype=torch.double))
        self._lost -= float(found.gather(1, wanted).sum(dtype=torch.double))
        self._same += float((exact.argmax(1) == found.argmax(1)).sum())
        self._differ += float((exact.exp() * (exact - found)).sum(dtype=torch.double))
        self._count += len(wanted)

    @property
    def quality(self) -> Quality:
        """What all windows so far come to, of which there is one at least."""
        count = self._count
        return Quality(
            perplexity=math.exp(self._lost / count),
            exact_perplexity=math.exp(self._exact_lost / count),
            top1=self._same / count,
            kl=self._differ / count,
            tokens=count,
        )


def compare(exact: LoadedModel, other: LoadedModel, ids: Sequence[int]) -> Quality:
    """Both models over the same text. Raises BadRequest for one that is too short, and what a pass raises."""
    if len(ids) < LEAST_TOKENS:
        raise BadRequest("The text is too short to judge by.", "", "Choose a text of at least a page.")
    tally = Tally()
    for window in windows(ids):
        told = foretold(exact, window)
        tally.add(told, told if other is exact else foretold(other, window), window)
    return tally.quality


def windows(ids: Sequence[int]) -> list[list[int]]:
    """The text in whole windows; one that is shorter than a window is all there is."""
    length = min(WINDOW, len(ids))
    return [list(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]


def foretold(model: LoadedModel, window: Sequence[int]) -> Tensor:
    """The logarithms of what is expected for every counted position, (positions, vocabulary)."""
    model.cache.reset()
    first, chunk = _uncounted(window), model.plan.prefill_chunk
    parts = [
        model.model.forward(window[start : start + chunk], model.cache, keep=min(chunk, len(window) - start))
        for start in range(0, len(window), chunk)
    ]
    return torch.cat(parts)[first:-1].float().log_softmax(1)


def _uncounted(window: Sequence[int]) -> int:
    return len(window) // 4
