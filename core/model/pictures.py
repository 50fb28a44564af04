"""Pictures in a prompt: each has negative ids of its own, which stand for the model's placeholder token.

Code that compares ids (KV cache contents, parked prompts) thus distinguishes pictures without knowing about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

PLACES = 1 << 20
"""More than the number of tokens of any picture."""


@dataclass(frozen=True)
class Picture:
    """One picture as model input.

    `key`: a number derived from its content; `count`: its placeholder tokens. `inputs`: the arguments of transformers'
    forward. `positions`: (3, count) from 0, for models that number a picture's tokens in three dimensions.
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
        """The number of positions by which it moves the text that follows."""
        return self.count if self.positions is None else int(self.positions.max()) + 1


class Vision(Protocol):
    """Converts ids that stand for pictures into arguments of a model's forward."""

    def concerns(self, read: Sequence[int], ids: Sequence[int]) -> bool:
        """Return whether a pass over `ids` after `read` needs `inputs`: text without earlier pictures does not."""

    def inputs(self, read: Sequence[int], ids: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Return the forward's arguments for a pass over `ids` (n,) after `read`, except cache and options."""


def begins(id: int) -> bool:
    """Return whether this is the first id of a picture."""
    return id < 0 and (-id - 1) % PLACES == 0


def key_of(id: int) -> int:
    """Return the key of the picture that a negative id belongs to."""
    return (-id - 1) // PLACES


def spans(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the range [begin, end) of each picture's ids; other tokens may lie in between."""
    first = last = -1
    for place in (place for place, id in enumerate(ids) if id < 0):
        if first >= 0 and begins(ids[place]):
            yield first, last + 1
            first = -1
        first, last = place if first < 0 else first, place
    if first >= 0:
        yield first, last + 1


def passes(prompt: Sequence[int], known: int, step: int) -> Iterator[tuple[int, int]]:
    """Divide the ids after the first `known` into passes of about `step`, each with one whole picture or none."""
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
