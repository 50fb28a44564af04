"""The decode loop, from ids to ids: prefill in chunks, then token by token. Independent of text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from core.events import Prefill, Stop
from core.generation.sampler import Sampler, TokenSampler
from core.generation.speculation import Speculation, likeliest
from core.layers.kv_cache import KVCache
from core.model.language_model import LanguageModel
from core.model.pictures import passes, spans
from core.planning.speculation import MOST_ROWS

# Large enough for full throughput. `stop` is checked between layers, so a chunk may take seconds.
PREFILL_CHUNK = 512
# If the cache can only return to marks, the last LAST_TOKENS of a turn are read separately, provided that at least
# LONG_TURN new tokens precede them.
LAST_TOKENS, LONG_TURN = 8, 64


@dataclass(frozen=True)
class DrawnToken:
    """A drawn id and the scores (vocabulary,) it was drawn from."""

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
    """Prefill `prompt`, reusing the prefix that the cache holds, then yield tokens until the caller stops iterating.

    `chunk_tokens`: prompt tokens per pass (0 = PREFILL_CHUNK). `speculation` drafts ahead.
    When the caller stops, the cache may hold a few tokens more than were yielded.
    Raises ForwardStopped when `stop` returns True.
    """
    step = chunk_tokens or PREFILL_CHUNK
    logits = yield from _read(model, cache, prompt, stop, step)
    ahead = speculation if cache.can_return else None
    try:
        yield from _decode(model, cache, list(prompt), logits, sample, stop, step, ahead)
    finally:
        if not model.frequencies.rereads and not cache.suits(len(prompt), len(cache.tokens)):
            cache.reset()  # made with both sets of frequencies, as transformers does: no part of another text


def _read(
    model: LanguageModel, cache: KVCache, text: Sequence[int], stop: Stop, step: int
) -> Generator[Prefill, None, Tensor]:
    """Read what the cache does not hold of `text`; return the logits of its last token."""
    known = cache.reuse(text)
    model.frequencies.use(len(text))
    yield Prefill(known, len(text), known)
    try:
        for start, end in _passes(cache, text, known, step):
            if end == len(text) or start == known:
                model.mark(cache)
            logits = model.forward(text[start:end], cache, stop)
            yield Prefill(end, len(text), known)
    finally:
        cache.suit(len(text))  # the part that was read so far may not stand for itself
    return logits


def _must_reread(model: LanguageModel, cache: KVCache, ids: Sequence[int]) -> bool:
    """Return whether the last of `ids` makes the text so long that all of it is read with other frequencies."""
    return model.frequencies.rereads and not cache.suits(len(cache.tokens), len(ids))


def _passes(cache: KVCache, prompt: Sequence[int], known: int, step: int) -> Iterator[tuple[int, int]]:
    """Divide the tokens after the first `known` into passes of about `step`.

    If the cache can only return to marks, the last tokens are read separately: then the same question can be asked
    again, or its reply left out later, without reading the whole prompt anew.
    """
    start, end = len(prompt) - LAST_TOKENS, len(prompt)
    apart = not cache.can_rewind and start - known >= LONG_TURN and not any(True for _ in spans(prompt[start:]))
    if not cache.reads_in_parts or not apart:
        yield from passes(prompt, known, step if cache.reads_in_parts else len(prompt))
        return
    yield from passes(prompt[:start], known, step)
    yield start, end


def drawn(logits: Tensor, drafted: Sequence[int], ids: list[int], sample: Sampler) -> Iterator[DrawnToken]:
    """Draw tokens from `logits` (1 + drafted, V): one for each accepted draft token, and one more.

    The first row belongs to the last certain token, the others to the drafted ones. Appends each drawn token to `ids`.
    """
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
    step: int,
    speculation: Speculation | None,
) -> Iterator[Prefill | DrawnToken]:
    yield from drawn(logits, (), ids, sample)
    if speculation is None:
        while True:
            if _must_reread(model, cache, ids):
                logits = yield from _read(model, cache, ids, stop, step)
                yield from drawn(logits, (), ids, sample)
            logits = model.forward(ids[-1:], cache, stop)
            yield from drawn(logits, (), ids, sample)
    speculation.prepare(ids, sample.guess if isinstance(sample, TokenSampler) else likeliest)
    while True:
        if _must_reread(model, cache, ids):
            logits = yield from _read(model, cache, ids, stop, step)
            yield from drawn(logits, (), ids, sample)
        unread = len(ids) - len(cache.tokens)
        drafted = speculation.draft(ids, min(cache.room_after(len(ids)), MOST_ROWS - unread))
        rows = MOST_ROWS if speculation.expects_drafts else 1
        began, known = time.perf_counter(), len(ids)
        if drafted:
            model.mark(cache, briefly=True)
        # If the cache can only return to marks, the accepted tokens of the last draft are read again with this one.
        logits = model.forward([*ids[len(cache.tokens) :], *drafted], cache, stop, 1 + len(drafted), rows)
        seconds = time.perf_counter() - began
        yield from drawn(logits, drafted, ids, sample)
        speculation.passed(len(drafted), len(ids) - known - 1, seconds)
        cache.rewind(len(ids) - 1)
