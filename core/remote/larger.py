"""How a model that is too large for this computer is served on a larger one: the command, made from its size."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

CARD_BYTES = 80_000_000_000
"""Memory of one card of a server, and the share of it that vLLM uses unless told otherwise."""
USED = 0.9
BESIDE = 1.15
"""Weights, and beside them KV cache, activations and CUDA's own."""
LONGEST = 32_768
"""Context where the user wished for none: more costs memory that most chats never use."""
MOST_CARDS = 64


@dataclass(frozen=True)
class Larger:
    """`command` serves the model with `cards` cards of CARD_BYTES each."""

    command: str
    cards: int


def larger(model: str, stored_bytes: int, context_limit: int, context: int | None = None) -> Larger:
    """The `vllm serve` line for a model as it is stored. `context`: as the user wished."""
    cards = 1
    # Powers of two: the heads of attention are divided among the cards.
    while cards < MOST_CARDS and stored_bytes * BESIDE > cards * CARD_BYTES * USED:
        cards *= 2
    length = min(context or LONGEST, context_limit or LONGEST)
    command = f"vllm serve {shlex.quote(model)} --max-model-len {length} --tensor-parallel-size {cards}"
    return Larger(command, cards)
