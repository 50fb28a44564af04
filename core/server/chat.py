"""POST /v1/chat/completions: OpenAI's chat API."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from core.events import Drawn, Finished, FinishReason, Message, Piece, Request, Sampling, Stats, Tool, ToolCall
from core.events import ToolCallPiece as CallPiece
from core.server.asked import arguments_of, forced, message, only_one, schema_of, stops, with_turns
from core.server.exchange import Exchange, WholeReply
from core.server.schemas import ChatCompletion, ChatMessage, ChatTool, SamplingFields
from core.server.service import timings
from core.server.sse import DONE, data


def to_request(wish: ChatCompletion) -> Request:
    """Convert to the engine's request. Raises ApiError."""
    only_one(wish)
    tools, must_call = forced(wish.tool_choice, _tools(wish.tools or ()))
    return with_turns(
        [_message(turn) for turn in wish.messages],
        sampling=sampling_of(wish, wish.max_completion_tokens or wish.max_tokens),
        stop=stops(wish.stop),
        tools=tools,
        must_call=must_call,
        json_schema=schema_of(wish.response_format),
        logprobs=(wish.top_logprobs or 0) if wish.logprobs else None,
    )


def sampling_of(wish: SamplingFields, max_tokens: int | None) -> Sampling:
    """Return the sampling parameters."""
    return Sampling(
        temperature=wish.temperature,
        top_k=wish.top_k if wish.top_k is None else max(wish.top_k, 0),
        top_p=wish.top_p,
        min_p=wish.min_p,
        repetition_penalty=wish.repetition_penalty,
        seed=wish.seed if wish.seed is None else wish.seed % 2**63,
        max_new_tokens=max_tokens,
        presence_penalty=wish.presence_penalty,
        frequency_penalty=wish.frequency_penalty,
        logit_bias=tuple((wish.logit_bias or {}).items()),
    )


def _tools(tools: Sequence[ChatTool]) -> list[Tool]:
    functions = [tool.function for tool in tools if tool.type == "function" and tool.function is not None]
    return [Tool(entry.name, entry.description or "", entry.parameters or {}) for entry in functions]


def _message(turn: ChatMessage) -> Message:
    calls = [
        ToolCall(call.id or "", call.function.name, arguments_of(call.function.arguments))
        for call in turn.tool_calls or ()
    ]
    reasoning = turn.reasoning_content or turn.reasoning or ""
    return message(turn.role, turn.content, calls, turn.tool_call_id or "", reasoning)


def finish_reason(reason: FinishReason, called: bool) -> str:  # noqa: FBT001
    """Return OpenAI's finish reason; a reply cut short is never reported as complete."""
    if reason in ("length", "context"):
        return "length"
    return "tool_calls" if called else "stop"


def usage(stats: Stats) -> dict[str, Any]:
    """Return the token counts in OpenAI's fields."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def logprobs(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return the log probabilities of the sampled tokens in OpenAI's fields."""
    return {
        "content": [
            _token(one.text, one.logprob) | {"top_logprobs": [_token(text, value) for text, value in one.top]}
            for one in drawn
        ]
    }


def _token(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def whole(answer: WholeReply, model: str, wish: ChatCompletion) -> dict[str, Any]:
    """Return the JSON object of a reply that is not streamed."""
    said: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.reasoning:
        said["reasoning_content"] = answer.reasoning
    if answer.calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    choice = {
        "index": 0,
        "message": said,
        "logprobs": logprobs(answer.drawn) if wish.logprobs else None,
        "finish_reason": finish_reason(answer.reason, bool(answer.calls)),
    }
    return _head("chat.completion", model) | {
        "choices": [choice], "usage": usage(answer.stats), "timings": timings(answer.stats),
    }  # fmt: skip


async def chunks(exchange: Exchange, model: str, wish: ChatCompletion) -> AsyncIterator[bytes]:
    """Yield the reply as a stream."""
    with_usage = bool(wish.stream_options and wish.stream_options.include_usage)
    head = _head("chat.completion.chunk", model) | ({"usage": None} if with_usage else {})
    writer = _Deltas(head, with_logprobs=bool(wish.logprobs))
    yield writer.chunk({"role": "assistant", "content": ""})
    async for event in exchange:
        match event:
            case Drawn():
                writer.drawn.append(event)
            case Piece(text, kind):
                yield writer.chunk({"content" if kind == "answer" else "reasoning_content": text})
            case CallPiece():
                writer.called = True
                yield writer.chunk({"tool_calls": [_call(event)]})
            case Finished(reason, stats):
                yield writer.chunk({}, finish_reason(reason, writer.called), timings=timings(stats))
                if with_usage:
                    yield data(head | {"choices": [], "usage": usage(stats)})
    yield DONE


class _Deltas:
    """Writes the chunks of one stream."""

    def __init__(self, head: dict[str, Any], *, with_logprobs: bool) -> None:
        self._head = head
        self._with_logprobs = with_logprobs
        self.drawn: list[Drawn] = []
        self.called = False

    def chunk(self, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if self._with_logprobs:
            choice["logprobs"] = logprobs(self.drawn) if self.drawn else None
            self.drawn = []
        return data(self._head | {"choices": [choice]} | extra)


def _call(piece: CallPiece) -> dict[str, Any]:
    """Return a tool call delta; only the first one has id and name, as empty ones in later deltas break clients."""
    if piece.id:
        function = {"name": piece.name, "arguments": piece.arguments}
        return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
