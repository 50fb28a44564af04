"""One reply while it is made: the request's words to a prompt, drawn ids to pieces, and why it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.errors import BadRequest, HeteGenError
from core.events import Event, Finished, FinishReason, Message, Prefill, Request, Stop, Truncated
from core.generation import context_window as overflow
from core.generation.generate import generate
from core.generation.prompt_lookup import PromptLookup
from core.generation.reasoning import ReplySplitter
from core.generation.reply_stats import Clock
from core.generation.sampler import make_sampler, settle
from core.layers.kv_cache import common_prefix
from core.model.language_model import ForwardStopped
from core.runtime.loaded_model import LoadedModel
from core.runtime.replanner import Replanner

STATS_EVERY_S = 0.25


class Reply:
    """`events()` gives them all, once. Making it raises BadRequest, NoChatTemplate or PromptTooLong."""

    def __init__(self, loaded: LoadedModel, request: Request, stop: Stop) -> None:
        if loaded.tokenizer is None:
            raise BadRequest("A shape has random weights and no words.", "", "Load a real model to chat.")
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._stop = stop
        self._draw = settle(request.sampling, loaded.sampling)
        self._prompt, self._truncated = self._read(request)
        context = loaded.cache.capacity
        self._limit = min(self._draw.max_new_tokens or context, context - len(self._prompt))
        self._text = self._tokenizer.stream()
        self._splitter = ReplySplitter(
            request.stop,
            in_reasoning=self._tokenizer.opens_reasoning(self._prompt),
            continuing=request.continue_reply,
        )
        self._clock = Clock(len(self._prompt), context, self._draw.seed)
        self._sample = make_sampler(self._draw)
        self._drawn: list[int] = []
        self._replanner = Replanner(loaded, loaded.profile)
        self._reason: FinishReason | None = None

    def events(self) -> Iterator[Event]:
        """Truncated?, Prefill..., Piece and Stats..., Finished."""
        if self._truncated:
            yield self._truncated
        while self._reason is None:
            try:
                yield from self._run()
            except ForwardStopped:
                self._reason = "stopped"
            except HeteGenError as error:
                if (change := self._replanner.after_failure(error)) is None:
                    raise
                yield change
        yield from self._splitter.push(self._text.finish())
        yield from self._splitter.finish()
        self._loaded.learn(self._replanner.profile)
        # Tokens computed ahead that nobody asked for are no part of the conversation.
        self._loaded.cache.trim(len(self._prompt) + len(self._drawn))
        yield Finished(self._reason, self._clock.stats())

    def _run(self) -> Iterator[Event]:
        """Read what is not in the cache, then draw until there is a reason to end."""
        loaded = self._loaded
        ids = [*self._prompt, *self._drawn]
        self._replanner.begin()
        # Streamed rows are fetched ahead for one token at a time: passes of other sizes would empty the ring.
        lookup = PromptLookup() if loaded.plan.gpu < 0 else None
        chunk = loaded.plan.prefill_chunk
        for step in generate(loaded.model, loaded.cache, ids, self._sample, self._stop, chunk, lookup):
            if isinstance(step, Prefill):
                yield from self._prefilled(step)
                continue
            yield from self._take(step.id)
            if self._reason:
                return
            change = self._replanner.after_token()
            if change.event:
                yield change.event
            if change.reread:
                return

    def _prefilled(self, step: Prefill) -> Iterator[Event]:
        if not self._drawn:
            self._clock.prefilled(step.done, step.reused)
        yield step

    def _take(self, token: int) -> Iterator[Event]:
        if token in self._tokenizer.stop_ids:
            self._reason = "stop"
            return
        self._drawn.append(token)
        self._clock.token()
        yield from self._splitter.push(self._text.push(token))
        if self._clock.due(STATS_EVERY_S):
            yield self._clock.stats()
        if self._splitter.stopped:
            self._reason = "stop"
        elif self._stop():
            self._reason = "stopped"
        elif self._clock.new_tokens >= self._limit:
            self._reason = "length" if self._limit == self._draw.max_new_tokens else "context"

    def _read(self, request: Request) -> tuple[list[int], Truncated | None]:
        """The prompt's ids, with the cached ids of the last reply where they stand for the same text."""
        messages = overflow.recent(_checked(request), self._loaded.source.remembered_turns)
        tokenizer, cache = self._tokenizer, self._loaded.cache

        def render(turns: Sequence[Message]) -> list[int]:
            unfinished = request.continue_reply and turns[-1] is messages[-1]
            return tokenizer.render(turns, continue_reply=unfinished)

        ids, truncated = overflow.fit(messages, render, cache.capacity, self._draw.max_new_tokens)
        start = self._loaded.reply_start
        if 0 < start <= common_prefix(cache.tokens, ids):
            ids = tokenizer.splice(ids, cache.tokens[start:], start)
        self._loaded.reply_start = len(ids)
        return ids, truncated


def _checked(request: Request) -> tuple[Message, ...]:
    """The messages of a request that can be answered. Raises BadRequest."""
    last = request.messages[-1] if request.messages else None
    if last is None or not (last.content.strip() or last.reasoning):
        raise BadRequest("The message is empty.", "", "Write something first.")
    if last.role == "system" or (last.role == "assistant") != request.continue_reply:
        raise BadRequest("There is nothing to answer.", "The last message is not a question.", "Write a message first.")
    return request.messages
