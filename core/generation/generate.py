"""ids -> ids: the prompt is read in chunks, then one token follows another. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from core.events import Prefill, Stop
from core.generation.prompt_lookup import PromptLookup
from core.generation.sampler import Sampler
from core.layers.kv_cache import KVCache
from core.model.language_model import LanguageModel

# Large enough to use the machine well; `stop` is looked at between layers, so a chunk may take seconds.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class DrawnToken:
    """One drawn id, and the scores (vocabulary,) it was drawn from."""

    id: int
    scores: Tensor | None = field(default=None, compare=False)


def generate(
    model: LanguageModel,
    cache: KVCache,
    prompt: Sequence[int],
    sample: Sampler,
    stop: Stop,
    chunk_tokens: int = 0,
    lookup: PromptLookup | None = None,
) -> Iterator[Prefill | DrawnToken]:
    """Read `prompt` (reusing what the cache holds of it), then draw tokens until the caller has enough.

    `chunk_tokens`: how many of the prompt are read in one pass (0 = PREFILL_CHUNK); `lookup` guesses ahead.
    The caller ends the generation by not asking for more; the cache may then hold a few tokens more than were given.
    Raises ForwardStopped when `stop` says so.
    """
    known = cache.reuse(prompt)
    yield Prefill(known, len(prompt), known)
    step = (chunk_tokens or PREFILL_CHUNK) if cache.reads_in_parts else len(prompt)
    for start in range(known, len(prompt), step):
        chunk = prompt[start : start + step]
        logits = model.forward(chunk, cache, stop)
        yield Prefill(start + len(chunk), len(prompt), known)
    yield from _decode(model, cache, list(prompt), logits, sample, stop, lookup if cache.can_rewind else None)


def _decode(
    model: LanguageModel,
    cache: KVCache,
    ids: list[int],
    logits: Tensor,
    sample: Sampler,
    stop: Stop,
    lookup: PromptLookup | None,
) -> Iterator[DrawnToken]:
    guess: list[int] = []
    seconds = 0.0
    while True:
        taken = 0
        for row, expected in zip(logits, [*guess, None], strict=True):
            token = sample(row, ids)
            ids.append(token)
            yield DrawnToken(token, row)
            if token != expected:
                break
            taken += 1
        if lookup is not None:
            if seconds:
                lookup.passed(len(guess), taken, seconds)
            cache.rewind(len(ids) - 1)
            guess = lookup.guess(ids, cache.capacity - len(ids))
        began = time.perf_counter()
        logits = model.forward([ids[-1], *guess], cache, stop, 1 + len(guess))
        seconds = time.perf_counter() - began
