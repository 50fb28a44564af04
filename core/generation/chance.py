"""What decides a draw: noise that depends on the seed, the place in the text and the token, and on nothing else.

Two models that find nearly the same tokens likely then nearly always draw the same one, so a drafted token often is the
one that is drawn. What is drawn is not changed by drafts at all: no token is kept for having been drafted (Daliri et
al. 2024, "Coupling without Communication and Drafter-Invariant Speculative Decoding").
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 0xFFFFFFFF


def draw_from(probabilities: Tensor, candidates: Tensor, seed: int, place: int) -> int:
    """One of the ids in candidates (n,), each as often as probabilities (n,) says, for this place of the text: the one
    whose noise, which is exponential, is smallest for its probability."""
    return int(candidates[(noise(candidates, seed, place) / probabilities).argmin()])


def noise(ids: Tensor, seed: int, place: int) -> Tensor:
    """Exponentially distributed numbers (n,) for ids (n,), independent for each seed, place and id."""
    low, high = _words(seed, place)
    mixed = _mixed(_mixed(ids ^ low) ^ high)
    return -torch.log((mixed.double() + 0.5) / (BITS + 1))


def uniform(seed: int, place: int) -> float:
    """A number from 0 to 1 that is independent of what `noise` gives."""
    return float(torch.exp(-noise(torch.tensor([-1]), seed, place)))


def _mixed(x: Tensor) -> Tensor:
    """Numbers of 32 bits in which each bit of x (n,) has turned about half of all bits."""
    x = x & BITS
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & BITS
    return x ^ (x >> 16)


def _words(seed: int, place: int) -> tuple[int, int]:
    """Two numbers of 32 bits for a seed and a place (splitmix64)."""
    x = (seed * 0xD1342543DE82EF95 + (place + 1) * 0x9E3779B97F4A7C15) & (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
    x ^= x >> 31
    return x & BITS, x >> 32
