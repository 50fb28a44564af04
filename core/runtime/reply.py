"""One reply in progress: from the prompt to sampled ids, pieces and the reason for its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.errors import HeteGenError
from core.events import Drawn, Event, Finished, FinishReason, Message, Piece, Prefill, Request, Stats, Stop
from core.generation.generate import DrawnToken, generate
from core.generation.grammar import GrammarMask
from core.generation.reasoning import ReplySplitter
from core.generation.reply_stats import Clock
from core.generation.sampler import TokenSampler, log_probabilities, resolve
from core.generation.speculation import Speculation
from core.generation.tool_formats import HARMONY, format_of
from core.generation.tool_parser import ToolParser
from core.model.language_model import ForwardStopped
from core.runtime.loaded_model import LoadedModel, SaidReply
from core.runtime.prompt import read_prompt, tokenizer_of, with_pictures_seen
from core.runtime.replanner import Replanner

STATS_EVERY_S = 0.25
EVEN = 1.0
"""Temperatures above this sample unlikely tokens."""


class Reply:
    """`events()` yields all events, once. The constructor raises BadRequest, NoChatTemplate or PromptTooLong."""

    def __init__(self, loaded: LoadedModel, request: Request, stop: Stop) -> None:
        self._tokenizer = tokenizer_of(loaded)
        self._loaded = loaded
        self._request = request = with_pictures_seen(loaded, request)
        self._stop = stop
        self._draw = resolve(request.sampling, loaded.sampling)
        self._prompt = read_prompt(loaded, request, self._draw.max_new_tokens)
        context, prompt_tokens = loaded.cache.capacity, len(self._prompt.ids)
        self._limit = min(self._draw.max_new_tokens or context, context - prompt_tokens)
        self._format = format_of(self._tokenizer.tool_template)
        self._follow()
        self._calls = None
        if request.tools:
            self._calls = ToolParser(self._format, request.tools, lambda: self._splitter.in_reasoning)
        self._clock = Clock(prompt_tokens, context, self._draw.seed)
        self._answer_marker = self._marker_before_answer()
        self._mask = self._grammar()
        self._sample = TokenSampler(self._draw, self._mask, prompt_tokens)
        self._drawn: list[int] = []
        self._replanner = Replanner(loaded, loaded.profile)
        self._reason: FinishReason | None = None
        self._speculation: Speculation | None = None

    def events(self) -> Iterator[Event]:
        """Yield Truncated?, Prefill..., Piece and Stats..., Finished."""
        if self._prompt.truncated:
            yield self._prompt.truncated
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
        self._loaded.cache.trim(len(self._prompt.ids) + len(self._drawn))
        self._loaded.keep_reading(self._request.conversation)
        yield Finished(self._reason, self._stats(), self._splitter.stop_text)

    def _run(self) -> Iterator[Event]:
        """Read what is not in the cache, then sample until there is a reason to end."""
        loaded = self._loaded
        ids = [*self._prompt.ids, *self._drawn]
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
        closing = self._tokenizer.opens_thought(self._prompt.ids)
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

    def _follow(self) -> None:
        """Set up the parsers of the reply's text, at its beginning or where an unfinished reply ended."""
        tokenizer, request = self._tokenizer, self._request
        last = request.messages[-1] if request.continue_reply else Message("assistant", "")
        self._shown = {"answer": last.content, "reasoning": last.reasoning}
        self._text = tokenizer.stream(self._format.shown if request.tools else ())
        closing = tokenizer.opens_thought(self._prompt.asked)
        self._splitter = ReplySplitter(request.stop, tokenizer.marks, closing)
        for token in self._prompt.carried:
            self._splitter.replay(self._text.push(token))

    def _show(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._shown[piece.kind] += piece.text
            yield piece

    def _keep(self) -> None:
        """Remember the reply's ids, in case it is continued."""
        request, prompt = self._request, self._prompt
        self._loaded.said = None
        if request.messages and not request.tools and not self._splitter.stopped:
            asked = request.messages[: -1 if request.continue_reply else None]
            drawn = [*prompt.carried, *self._drawn]
            answer, reasoning = self._shown["answer"], self._shown["reasoning"]
            self._loaded.said = SaidReply(asked, prompt.asked, drawn, answer, reasoning)


class _Marker:
    """Waits for a text in the reply, then activates a grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._seen = ""

    def seen(self, text: str, mask: GrammarMask) -> None:
        self._seen = (self._seen + text)[-len(self._text) - len(text) :]
        if self._text in self._seen:
            mask.begin()
