"""Derives the command that serves a model, too large for this computer, on a larger one, from the model's size."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

CARD_BYTES = 80_000_000_000
"""Memory of one server GPU; USED is the fraction of it that vLLM takes by default."""
USED = 0.9
BESIDE = 1.15
"""Total memory per weight byte, including KV cache, activations and CUDA's own."""
LONGEST = 32_768
"""The default context: more takes memory that most chats never use."""
MOST_CARDS = 64


@dataclass(frozen=True)
class Larger:
    """`command` serves the model with `cards` GPUs of CARD_BYTES each."""

    command: str
    cards: int


def larger(model: str, stored_bytes: int, context_limit: int, context: int | None = None) -> Larger:
    """Return the `vllm serve` command for a model as stored. `context`: the user's wish."""
    cards = 1
    # Powers of two, because the attention heads are divided among the GPUs.
    while cards < MOST_CARDS and stored_bytes * BESIDE > cards * CARD_BYTES * USED:
        cards *= 2
    length = min(context or LONGEST, context_limit or LONGEST)
    command = f"vllm serve {shlex.quote(model)} --max-model-len {length} --tensor-parallel-size {cards}"
    return Larger(command, cards)
