"""One reply in progress: the request to a prompt, sampled ids to pieces, and the reason for its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.errors import BadRequest, HeteGenError, PromptTooLong
from core.events import Drawn, Event, Finished, FinishReason, Message, Piece, Prefill, Request, Stats, Stop, Truncated
from core.generation import context_window as overflow
from core.generation.generate import DrawnToken, generate
from core.generation.grammar import GrammarMask
from core.generation.reasoning import ReplySplitter
from core.generation.reply_stats import Clock
from core.generation.sampler import TokenSampler, log_probabilities, resolve
from core.generation.speculation import Speculation
from core.generation.tool_formats import HARMONY, format_of
from core.generation.tool_parser import ToolParser
from core.layers.kv_cache import common_prefix
from core.model.language_model import ForwardStopped
from core.runtime.loaded_model import LoadedModel, SaidReply
from core.runtime.replanner import Replanner
from core.sentence import sentence

STATS_EVERY_S = 0.25
EVEN = 1.0
"""Temperatures above this sample unlikely tokens."""


class Reply:
    """`events()` yields all events, once. The constructor raises BadRequest, NoChatTemplate or PromptTooLong."""

    def __init__(self, loaded: LoadedModel, request: Request, stop: Stop) -> None:
        if loaded.tokenizer is None:
            raise BadRequest("A shape has random weights and no words.", "", "Load a real model to chat.")
        request = with_pictures_seen(loaded, request)
        self._loaded = loaded
        self._request = request
        self._tokenizer = loaded.tokenizer
        self._stop = stop
        self._draw = resolve(request.sampling, loaded.sampling)
        self._prompt, self._truncated = self._read(request)
        context = loaded.cache.capacity
        self._limit = min(self._draw.max_new_tokens or context, context - len(self._prompt))
        self._format = format_of(self._tokenizer.tool_template)
        self._follow()
        self._calls = None
        if request.tools:
            self._calls = ToolParser(self._format, request.tools, lambda: self._splitter.in_reasoning)
        self._clock = Clock(len(self._prompt), context, self._draw.seed)
        self._answer_marker = self._marker_before_answer()
        self._mask = self._grammar()
        self._sample = TokenSampler(self._draw, self._mask, len(self._prompt))
        self._drawn: list[int] = []
        self._replanner = Replanner(loaded, loaded.profile)
        self._reason: FinishReason | None = None
        self._speculation: Speculation | None = None

    def events(self) -> Iterator[Event]:
        """Yield Truncated?, Prefill..., Piece and Stats..., Finished."""
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
        if self._reason == "stop":  # otherwise it may be continued, and the rest of a character is still to come
            yield from self._said(self._text.finish())
        if self._calls is not None:
            for part in self._calls.finish():
                yield from self._show(self._splitter.push(part)) if isinstance(part, str) else (part,)
        yield from self._show(self._splitter.finish())
        self._keep()
        self._loaded.learn(self._replanner.profile)
        self._loaded.keep_expert_uses()
        # Drafted tokens beyond the end of the reply are not part of the conversation.
        self._loaded.cache.trim(len(self._prompt) + len(self._drawn))
        self._loaded.keep_reading(self._request.conversation)
        yield Finished(self._reason, self._stats(), self._splitter.stop_text)

    def _run(self) -> Iterator[Event]:
        """Read what is not in the cache, then sample until there is a reason to end."""
        loaded = self._loaded
        ids = [*self._prompt, *self._drawn]
        self._replanner.begin()
        loaded.model.whole_head = self._asks_for_all_logits
        self._speculation = loaded.speculation(ids)
        chunk = loaded.plan.prefill_chunk
        for step in generate(loaded.model, loaded.cache, ids, self._sample, self._stop, chunk, self._speculation):
            if isinstance(step, Prefill):
                yield from self._prefilled(step)
                continue
            yield from self._take(step)
            if self._reason:
                return
            change = self._replanner.after_token()
            if change.event:
                yield change.event
            if change.reread:
                return

    @property
    def _asks_for_all_logits(self) -> bool:
        """Whether unlikely tokens matter: grammars choose among them, and requested probabilities cover them."""
        even = self._draw.temperature > EVEN
        return even or self._mask is not None or self._request.logprobs is not None

    def _stats(self) -> Stats:
        stats, ahead = replace(self._clock.stats(), experts=self._loaded.expert_shares), self._speculation
        if ahead is None:
            return stats
        return replace(stats, drafter=ahead.drafter, tokens_per_pass=ahead.tokens_per_pass, acceptance=ahead.acceptance)

    def _prefilled(self, step: Prefill) -> Iterator[Event]:
        if not self._drawn:
            self._clock.prefilled(step.done, step.reused)
        yield step

    def _take(self, step: DrawnToken) -> Iterator[Event]:
        token = step.id
        if token in self._tokenizer.stop_ids:
            self._reason = "stop"
            return
        self._drawn.append(token)
        self._clock.token()
        if self._request.logprobs is not None and step.scores is not None:
            yield self._with_probability(step, self._request.logprobs)
        yield from self._said(self._text.push(token))
        if self._clock.due(STATS_EVERY_S):
            yield self._stats()
        if self._splitter.stopped or (self._mask is not None and self._mask.ended):
            self._reason = "stop"
        elif self._stop():
            self._reason = "stopped"
        elif self._clock.new_tokens >= self._limit:
            self._reason = "length" if self._limit == self._draw.max_new_tokens else "context"

    def _said(self, text: str) -> Iterator[Event]:
        """Yield the events of a run of the reply's text: answer, reasoning, tool calls."""
        if self._mask is not None and self._answer_marker:
            self._answer_marker.seen(text, self._mask)
        if self._calls is None:
            yield from self._show(self._splitter.push(text))
            return
        for part in self._calls.push(text):
            yield from self._show(self._splitter.push(part)) if isinstance(part, str) else (part,)

    def _with_probability(self, step: DrawnToken, count: int) -> Drawn:
        assert step.scores is not None
        spell = self._tokenizer.decode
        own, top = log_probabilities(step.scores, step.id, count)
        return Drawn(spell([step.id]), own, tuple((spell([token]), value) for token, value in top))

    def _marker_before_answer(self) -> _Marker | None:
        """Return the text after which a grammar applies: the end of the reasoning, if the reply is certain to have
        one."""
        if self._format is HARMONY:
            return None if self._request.must_call else _Marker("<|channel|>final<|message|>")
        closing = self._tokenizer.opens_thought(self._prompt)
        return _Marker(closing) if closing else None

    def _grammar(self) -> GrammarMask | None:
        """Return the token mask that the request asks for. Raises BadRequest."""
        request, waits = self._request, self._answer_marker is not None
        if request.must_call:
            tools = [tool for tool in request.tools if tool.name in request.must_call]
            return self._loaded.grammars.for_calls(self._format, tools, waits=waits)
        if request.json_schema is not None:
            return self._loaded.grammars.for_schema(request.json_schema, waits=waits)
        return None

    def _read(self, request: Request) -> tuple[list[int], Truncated | None]:
        """Return the prompt's ids, with the cached ids of the last reply where they stand for the same text."""
        self._carried: list[int] = []
        if request.prompt is not None or request.whole:
            ids, truncated = _fitting(prompt_ids(self._loaded, request), self._loaded.cache.capacity), None
            if request.continue_reply:
                _, self._carried = self._tokenizer.render_unfinished(request.messages, request.tools)
        else:
            ids, truncated = self._recent(request)
        self._loaded.turn_to(ids, request.conversation)
        cache, start = self._loaded.cache, self._loaded.reply_start
        if 0 < start <= common_prefix(cache.tokens, ids):
            ids = self._tokenizer.splice(ids, cache.tokens[start:], start)
        self._loaded.reply_start = len(ids)
        return ids, truncated

    def _recent(self, request: Request) -> tuple[list[int], Truncated | None]:
        """Return as much of the conversation as fits, dropping the oldest turns; an unfinished reply by its own ids."""
        capacity, limit = self._loaded.cache.capacity, self._draw.max_new_tokens
        messages = overflow.recent(_checked(request), self._loaded.source.remembered_turns)
        tokenizer, said = self._tokenizer, self._loaded.said
        by_ids = said if said and request.continue_reply and said.is_last_of(request.messages) else None
        if by_ids and len(by_ids.prompt) + len(by_ids.drawn) <= overflow.room_for_prompt(capacity, limit):
            self._carried = by_ids.drawn
            return [*by_ids.prompt, *by_ids.drawn], None

        def render(turns: Sequence[Message]) -> list[int]:
            if not request.continue_reply or turns[-1] is not messages[-1]:
                return tokenizer.render(turns, tools=request.tools)
            prompt, reply = tokenizer.render_unfinished(turns, request.tools)
            self._carried = by_ids.drawn if by_ids else reply
            return [*prompt, *self._carried]

        return overflow.fit(messages, render, capacity, limit)

    def _follow(self) -> None:
        """Set up the parsers of the reply's text, at its beginning or where an unfinished reply ended."""
        tokenizer, request = self._tokenizer, self._request
        last = request.messages[-1] if request.continue_reply else Message("assistant", "")
        self._shown = {"answer": last.content, "reasoning": last.reasoning}
        self._text = tokenizer.stream(self._format.shown if request.tools else ())
        closing = tokenizer.opens_thought(self._prompt[: len(self._prompt) - len(self._carried)])
        self._splitter = ReplySplitter(request.stop, tokenizer.marks, closing)
        for token in self._carried:
            self._splitter.replay(self._text.push(token))

    def _show(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._shown[piece.kind] += piece.text
            yield piece

    def _keep(self) -> None:
        """Remember the reply's ids, in case it is continued."""
        request, start = self._request, len(self._prompt) - len(self._carried)
        self._loaded.said = None
        if request.messages and not request.tools and not self._splitter.stopped:
            asked = request.messages[: -1 if request.continue_reply else None]
            drawn = [*self._carried, *self._drawn]
            answer, reasoning = self._shown["answer"], self._shown["reasoning"]
            self._loaded.said = SaidReply(asked, self._prompt[:start], drawn, answer, reasoning)


class _Marker:
    """Waits for a text in the reply, then activates a grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._seen = ""

    def seen(self, text: str, mask: GrammarMask) -> None:
        self._seen = (self._seen + text)[-len(self._text) - len(text) :]
        if self._text in self._seen:
            mask.begin()


def prompt_ids(loaded: LoadedModel, request: Request) -> list[int]:
    """Return the ids of a request's whole prompt. Raises BadRequest, NoChatTemplate."""
    if loaded.tokenizer is None:
        raise BadRequest("A shape has random weights and no words.", "", "Load a real model to chat.")
    if request.prompt is None:
        messages = _checked(with_pictures_seen(loaded, request))
        return loaded.tokenizer.render(messages, continue_reply=request.continue_reply, tools=request.tools)
    ids = loaded.tokenizer.encode_prompt(request.prompt)
    if not ids:
        raise BadRequest("The message is empty.", "", "Write something first.")
    return ids


def with_pictures_seen(loaded: LoadedModel, request: Request) -> Request:
    """Prepare a request's pictures: a model without vision ignores those of earlier turns. Raises BadRequest if the
    current question has one, ModelUnreadable, UnsupportedModel, NotEnoughMemory."""
    if not any(message.pictures for message in request.messages):
        return request
    question = next((one for one in reversed(request.messages) if one.role == "user"), request.messages[-1])
    if loaded.sees or question.pictures:
        loaded.open_vision()
        return request
    return replace(request, messages=tuple(replace(one, pictures=()) for one in request.messages))


def _fitting(ids: list[int], context: int) -> list[int]:
    """Return the ids if they fit into the context. Raises PromptTooLong."""
    if len(ids) < context:
        return ids
    raise PromptTooLong(
        sentence("The prompt is longer than the context: {} of {} tokens.", f"{len(ids):,}", f"{context:,}"),
        "",
        "Shorten it, or load the model with a longer context.",
    )


def _checked(request: Request) -> tuple[Message, ...]:
    """Return the messages of a request that can be answered. Raises BadRequest."""
    last = request.messages[-1] if request.messages else None
    said = last is not None and (last.content.strip() or last.pictures)
    if last is None or not (said or request.continue_reply or last.role == "tool"):
        raise BadRequest("The message is empty.", "", "Write something first.")
    if (last.role == "system" and not request.whole) or (last.role == "assistant") != request.continue_reply:
        raise BadRequest("There is nothing to answer.", "The last message is not a question.", "Write a message first.")
    return request.messages
