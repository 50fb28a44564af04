"""Random numbers of a draw: noise that is a function of seed, position and token id alone.

Two models with similar distributions therefore nearly always draw the same token, which makes drafts likely to be
accepted. The output distribution is unaffected: a token is never kept because it was drafted (Daliri et al. 2024,
"Coupling without Communication and Drafter-Invariant Speculative Decoding").
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

BITS = 0xFFFFFFFF
FEW = 48
"""Up to this many ids, Python's integers are faster than torch's some thirty operations."""
Words = TypeVar("Words", int, Tensor)


def draw_from(probabilities: Tensor, candidates: Tensor, seed: int, place: int) -> int:
    """Draw one of the ids in `candidates` (n,) with probabilities (n,), for this position in the text.

    Takes the candidate with the least exponential noise divided by its probability.
    """
    if len(candidates) == 1:  # the most frequent case, and noise takes longer than the rest of the sampler
        return int(candidates)
    return int(candidates[(noise(candidates, seed, place) / probabilities).argmin()])


def noise(ids: Tensor, seed: int, place: int) -> Tensor:
    """Return exponentially distributed numbers (n,) for ids (n,), independent for each seed, position and id."""
    low, high = _words(seed, place)
    if len(ids) <= FEW:
        mixed = torch.tensor([_mixed(_mixed(id ^ low) ^ high) for id in ids.tolist()])
    else:
        mixed = _mixed(_mixed(ids ^ low) ^ high)
    return -torch.log((mixed.double() + 0.5) / (BITS + 1))


def uniform(seed: int, place: int) -> float:
    """Return a number between 0 and 1 that is independent of the numbers of `noise`."""
    return float(torch.exp(-noise(torch.tensor([-1]), seed, place)))


def _mixed(x: Words) -> Words:
    """Return 32-bit hashes of numbers: each input bit flips about half of the output bits."""
    x = x & BITS
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & BITS
    return x ^ (x >> 16)


def _words(seed: int, place: int) -> tuple[int, int]:
    """Return two 32-bit words for a seed and a position (splitmix64)."""
    x = (seed * 0xD1342543DE82EF95 + (place + 1) * 0x9E3779B97F4A7C15) & (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
    x ^= x >> 31
    return x & BITS, x >> 32
