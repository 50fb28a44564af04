"""ids -> ids: the prompt is read in chunks, then one token follows another. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from core.events import Prefill, Stop
from core.generation.sampler import Sampler, TokenSampler
from core.generation.speculation import Speculation, likeliest
from core.layers.kv_cache import KVCache
from core.model.language_model import LanguageModel
from core.model.pictures import passes, spans
from core.planning.speculation import MOST_ROWS

# Large enough to use the machine well; `stop` is looked at between layers, so a chunk may take seconds.
PREFILL_CHUNK = 512
# Where a cache can only return to marks, this many tokens of a turn are read by themselves, if it has so many more.
LAST_TOKENS, LONG_TURN = 8, 64


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
    speculation: Speculation | None = None,
) -> Iterator[Prefill | DrawnToken]:
    """Read `prompt` (reusing what the cache holds of it), then draw tokens until the caller has enough.

    `chunk_tokens`: how many of the prompt are read in one pass (0 = PREFILL_CHUNK); `speculation` drafts ahead.
    The caller ends the generation by not asking for more; the cache may then hold a few tokens more than were given.
    Raises ForwardStopped when `stop` says so.
    """
    known = cache.reuse(prompt)
    yield Prefill(known, len(prompt), known)
    for start, end in _passes(cache, prompt, known, chunk_tokens or PREFILL_CHUNK):
        if end == len(prompt) or start == known:
            model.mark(cache)
        logits = model.forward(prompt[start:end], cache, stop)
        yield Prefill(end, len(prompt), known)
    yield from _decode(model, cache, list(prompt), logits, sample, stop, speculation if cache.can_return else None)


def _passes(cache: KVCache, prompt: Sequence[int], known: int, step: int) -> Iterator[tuple[int, int]]:
    """Divide what follows the first `known` ids into runs of about `step`. Where the cache can only return to marks,
    the end is read by itself: the same question may be asked again, or its reply be left out of what follows."""
    start, end = len(prompt) - LAST_TOKENS, len(prompt)
    apart = not cache.can_rewind and start - known >= LONG_TURN and not any(True for _ in spans(prompt[start:]))
    if not cache.reads_in_parts or not apart:
        yield from passes(prompt, known, step if cache.reads_in_parts else len(prompt))
        return
    yield from passes(prompt[:start], known, step)
    yield start, end


def drawn(logits: Tensor, drafted: Sequence[int], ids: list[int], sample: Sampler) -> Iterator[DrawnToken]:
    """Draw from `logits` (1 + drafted, V) of the last certain token and the drafted ones that follow it: one
    token more than was drafted rightly. Each is appended to `ids`."""
    for row, expected in zip(logits, [*drafted, None], strict=True):
        token = sample(row, ids)
        ids.append(token)
        yield DrawnToken(token, row)
        if token != expected:
            return


def _decode(
    model: LanguageModel,
    cache: KVCache,
    ids: list[int],
    logits: Tensor,
    sample: Sampler,
    stop: Stop,
    speculation: Speculation | None,
) -> Iterator[DrawnToken]:
    yield from drawn(logits, (), ids, sample)
    if speculation is None:
        while True:
            logits = model.forward(ids[-1:], cache, stop)
            yield from drawn(logits, (), ids, sample)
    speculation.prepare(ids, sample.guess if isinstance(sample, TokenSampler) else likeliest)
    while True:
        drafted = speculation.draft(ids, cache.capacity - len(ids))
        rows = MOST_ROWS if speculation.expects_drafts else 1
        began, known = time.perf_counter(), len(ids)
        if drafted:
            model.mark(cache, briefly=True)
        # Where only marks can be returned to, what was right of the last draft is read again with this one.
        unread = ids[len(cache.tokens) :]
        logits = model.forward([*unread, *drafted], cache, stop, 1 + len(drafted), rows)
        seconds = time.perf_counter() - began
        yield from drawn(logits, drafted, ids, sample)
        speculation.passed(len(drafted), len(ids) - known - 1, seconds)
        cache.rewind(len(ids) - 1)
