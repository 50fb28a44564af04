"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, as used by Claude Code."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from core.events import Finished, FinishReason, Message, Piece, Prefill, Request, Sampling, Stats, Tool, ToolCall
from core.events import ToolCallPiece as CallPiece
from core.server.asked import arguments_of, forced, picture_of_source, schema_of, stops, text_of, with_turns
from core.server.errors import ApiError
from core.server.exchange import Exchange, WholeReply
from core.server.schemas import AnthropicMessage, AnthropicTool, Block, CountTokens, MessageCreate
from core.server.sse import data

IGNORED = ("redacted_thinking",)


def to_request(wish: MessageCreate) -> Request:
    """Convert to the engine's request. Raises ApiError."""
    tools, must_call = _choice(wish)
    return with_turns(
        _turns(wish),
        sampling=Sampling(wish.temperature, wish.top_k, wish.top_p, max_new_tokens=wish.max_tokens),
        stop=stops(wish.stop_sequences),
        tools=tools,
        must_call=must_call,
        json_schema=schema_of((wish.output_config and wish.output_config.format) or wish.output_format),
    )


def to_count(wish: CountTokens) -> Request:
    """Return the request whose prompt is counted. Raises ApiError."""
    return with_turns(_turns(wish), tools=_choice(wish)[0])


def _choice(wish: CountTokens) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    tools = _tools(wish.tools or ())
    choice = wish.tool_choice
    if choice is None:
        return forced(None, tools)
    return forced({"name": choice.name} if choice.type == "tool" else choice.type, tools)


def _tools(tools: Sequence[AnthropicTool]) -> list[Tool]:
    """Return the client's own tools; those that Anthropic's servers would run have no schema."""
    return [Tool(tool.name, tool.description or "", tool.input_schema) for tool in tools if tool.input_schema]


def _turns(wish: CountTokens) -> list[Message]:
    system = text_of(wish.system)
    turns = [Message("system", system)] if system else []
    for said in wish.messages:
        turns += _message(said)
    return turns


def _message(said: AnthropicMessage) -> list[Message]:
    """Return the turns of a message: tool results become turns of their own, before the rest."""
    if isinstance(said.content, str):
        return [Message(said.role, said.content)]
    results = [
        Message("tool", text_of(block.content), tool_call_id=block.tool_use_id or "")
        for block in said.content
        if block.type == "tool_result"
    ]
    text = "\n".join(_text(block) for block in said.content if _text(block))
    calls = [
        ToolCall(block.id or "", block.name or "", arguments_of(block.input))
        for block in said.content
        if block.type == "tool_use"
    ]
    reasoning = "".join(block.thinking or "" for block in said.content if block.type == "thinking")
    shown = tuple(picture_of_source(block.source or {}) for block in said.content if block.type == "image")
    if not text and not calls and not shown and results:
        return results
    return [*results, Message(said.role, text, reasoning, tuple(calls), pictures=shown)]


def _text(block: Block) -> str:
    if block.type == "text":
        return block.text or ""
    if block.type not in ("tool_result", "tool_use", "thinking", "image", *IGNORED):
        raise ApiError(400, f"Only text and pictures can be sent, not {block.type[:40]!r}.", param="messages")
    return ""


def stop_reason(reason: FinishReason, called: bool, stop_text: str) -> str:  # noqa: FBT001
    """Return Anthropic's stop reason."""
    if reason in ("length", "context"):
        return "max_tokens"
    if called:
        return "tool_use"
    return "stop_sequence" if stop_text else "end_turn"


def usage(stats: Stats) -> dict[str, Any]:
    """Return the token counts in Anthropic's fields."""
    return {
        "input_tokens": stats.prompt_tokens - stats.reused_tokens,
        "cache_read_input_tokens": stats.reused_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": stats.new_tokens,
    }


def whole(answer: WholeReply, model: str) -> dict[str, Any]:
    """Return the JSON object of a reply that is not streamed."""
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.text or not answer.calls:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": _input(call.arguments)}
        for call in answer.calls
    ]
    return _head(model) | {
        "content": content,
        "stop_reason": stop_reason(answer.reason, bool(answer.calls), answer.stop_text),
        "stop_sequence": answer.stop_text or None,
        "usage": usage(answer.stats),
    }


async def chunks(exchange: Exchange, model: str) -> AsyncIterator[bytes]:
    """Yield the reply as Anthropic's event stream: consecutive, numbered content blocks."""
    writer = _Blocks()
    started = False
    async for event in exchange:
        if not started and isinstance(event, Prefill):
            started = True
            yield _start(model, Stats(prompt_tokens=event.total, reused_tokens=event.reused))
        match event:
            case Piece(text, "answer"):
                yield writer.into("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": text})
            case Piece(text):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                yield writer.into("thinking", block, {"type": "thinking_delta", "thinking": text})
            case CallPiece(index, id, name, arguments):
                call = {"type": "tool_use", "id": _id(id), "name": name, "input": dict[str, Any]()}
                delta = {"type": "input_json_delta", "partial_json": arguments}
                yield writer.into(f"call {index}", call, delta)
            case Finished(reason, stats, stop_text):
                yield writer.close()
                why = {
                    "stop_reason": stop_reason(reason, writer.called, stop_text), "stop_sequence": stop_text or None,
                }  # fmt: skip
                yield _event({"type": "message_delta", "delta": why, "usage": usage(stats)})
                yield _event({"type": "message_stop"})


class _Blocks:
    """Opens and closes the content blocks of one stream."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""
        self.called = False

    def into(self, key: str, block: dict[str, Any], delta: dict[str, Any]) -> bytes:
        """Return a delta of the block `key`, opening it if another one is open."""
        opening = b""
        if key != self._open:
            opening = self.close()
            self._index, self._open = self._index + 1, key
            self.called = self.called or key.startswith("call")
            opening += _event({"type": "content_block_start", "index": self._index, "content_block": block})
        return opening + _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event({"type": "content_block_stop", "index": self._index})


def _start(model: str, stats: Stats) -> bytes:
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(stats)}
    return _event({"type": "message_start", "message": _head(model) | empty})


def _event(content: dict[str, Any]) -> bytes:
    return data(content, content["type"])


def _head(model: str) -> dict[str, Any]:
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}


def _id(id: str) -> str:
    return id.replace("call_", "toolu_", 1)


def _input(arguments: str) -> Any:
    """Parse a call's arguments; truncated ones are invalid JSON and become empty."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}
