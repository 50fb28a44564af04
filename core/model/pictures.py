"""Pictures among a prompt's ids: each has ids of its own below 0, which stand for the model's placeholder token.

So whatever compares ids (what the KV cache holds, what was parked) tells pictures apart, and needs to know of none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

PLACES = 1 << 20
"""More than any picture has tokens."""


@dataclass(frozen=True)
class Picture:
    """One picture as a model takes it.

    `key`: a number of its content; `count`: its placeholder tokens. `inputs`: what transformers' forward wants of it.
    `positions`: (3, count) from 0, for models that count a picture's tokens in three directions.
    """

    key: int
    count: int
    inputs: Mapping[str, Tensor] = field(repr=False)
    positions: Tensor | None = field(default=None, repr=False)

    @property
    def ids(self) -> range:
        """Its ids in a prompt, in order."""
        first = -self.key * PLACES - 1
        return range(first, first - self.count, -1)

    @property
    def advance(self) -> int:
        """How far it moves the text that follows, in positions."""
        return self.count if self.positions is None else int(self.positions.max()) + 1


class Vision(Protocol):
    """What turns ids that stand for pictures into what a model's forward takes."""

    def concerns(self, read: Sequence[int], ids: Sequence[int]) -> bool:
        """Whether a pass over `ids` after `read` needs `inputs`: text without pictures before it does not."""

    def inputs(self, read: Sequence[int], ids: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """The forward's arguments for a pass over `ids` (n,) after `read`, beside cache and options."""


def begins(id: int) -> bool:
    """Whether it is the first id of a picture."""
    return id < 0 and (-id - 1) % PLACES == 0


def key_of(id: int) -> int:
    """The key of the picture that an id below 0 belongs to."""
    return (-id - 1) // PLACES


def spans(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where each picture's ids begin and end among these; other tokens may stand between them."""
    first = last = -1
    for place in (place for place, id in enumerate(ids) if id < 0):
        if first >= 0 and begins(ids[place]):
            yield first, last + 1
            first = -1
        first, last = place if first < 0 else first, place
    if first >= 0:
        yield first, last + 1


def passes(prompt: Sequence[int], known: int, step: int) -> Iterator[tuple[int, int]]:
    """Divide what follows the first `known` ids into runs of about `step`, with all of one picture or none in each."""
    pictures = [(first + known, end + known) for first, end in spans(prompt[known:])]
    start = known
    while start < len(prompt):
        end = min(start + step, len(prompt))
        inside = [span for span in pictures if start <= span[0] < end]
        if inside and inside[0][1] > end:
            end = inside[0][0] if inside[0][0] > start else inside[0][1]
        elif len(inside) > 1:
            end = inside[1][0]
        yield start, end
        start = end
