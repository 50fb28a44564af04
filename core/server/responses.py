"""POST /v1/responses: OpenAI's newer API, as used by Codex. Stateless: each request holds all turns."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from typing import Any

from core.events import Finished, FinishReason, Message, Piece, Request, Sampling, Stats, Tool, ToolCall
from core.events import ToolCallPiece as CallPiece
from core.server.asked import forced, message, schema_of, text_of, with_turns
from core.server.errors import ApiError
from core.server.exchange import Exchange, WholeReply
from core.server.schemas import ResponseCreate, ResponseItem, ResponseTool
from core.server.service import timings
from core.server.sse import data


def to_request(wish: ResponseCreate) -> Request:
    """Convert to the engine's request. Raises ApiError."""
    if wish.previous_response_id:
        raise ApiError(400, "Nothing is stored here: send all turns as input.", param="previous_response_id")
    if wish.background:
        raise ApiError(400, "Replies are not made in the background here.", param="background")
    tools, must_call = forced(wish.tool_choice, _tools(wish.tools or ()))
    return with_turns(
        _turns(wish),
        sampling=Sampling(wish.temperature, top_p=wish.top_p, max_new_tokens=wish.max_output_tokens),
        tools=tools,
        must_call=must_call,
        json_schema=schema_of(wish.text.format if wish.text else None),
    )


def _tools(tools: Sequence[ResponseTool]) -> list[Tool]:
    """Return the function tools: other kinds run on OpenAI's servers or are specific to its models."""
    return [
        Tool(tool.name, tool.description or "", tool.parameters or {})
        for tool in tools
        if tool.type == "function" and tool.name
    ]


def _turns(wish: ResponseCreate) -> list[Message]:
    turns = [Message("system", wish.instructions)] if wish.instructions else []
    if isinstance(wish.input, str):
        return [*turns, Message("user", wish.input)]
    for item in wish.input:
        turns += _turn(item, turns)
    return turns


def _turn(item: ResponseItem, before: list[Message]) -> list[Message]:
    """Return the turn of one item; calls are merged into the turn before them."""
    match item.type:
        case "function_call":
            call = ToolCall(item.call_id or "", item.name or "", item.arguments or "{}")
            if before and before[-1].role == "assistant":
                last = before.pop()
                return [Message("assistant", last.content, last.reasoning, (*last.tool_calls, call))]
            return [Message("assistant", "", tool_calls=(call,))]
        case "function_call_output":
            return [Message("tool", text_of(item.output), tool_call_id=item.call_id or "")]
        case "message" | None if item.role:
            return [message(item.role, item.content)]
        case _:
            return []  # reasoning and items of OpenAI's own tools


def whole(answer: WholeReply, model: str) -> dict[str, Any]:
    """Return the JSON object of a reply that is not streamed."""
    items = [_item(kind, text) for kind, text in (("reasoning", answer.reasoning), ("message", answer.text)) if text]
    items += [_call_item(call) for call in answer.calls]
    return _response(model, f"resp_{secrets.token_hex(12)}", items, answer.reason, answer.stats)


def _item(kind: str, text: str, id: str = "") -> dict[str, Any]:
    id = id or f"{'rs' if kind == 'reasoning' else 'msg'}_{secrets.token_hex(12)}"
    if kind == "reasoning":
        content = [{"type": "reasoning_text", "text": text}]
        return {"id": id, "type": kind, "summary": [], "content": content, "status": "completed"}
    return {"id": id, "type": kind, "role": "assistant", "status": "completed", "content": [_part(text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id.replace("call_", "fc_", 1), "type": "function_call", "call_id": call.id, "name": call.name,
        "arguments": call.arguments, "status": "completed",
    }  # fmt: skip


def _response(
    model: str, id: str, items: list[dict[str, Any]], reason: FinishReason | None, stats: Stats
) -> dict[str, Any]:
    cut = reason in ("length", "context")
    ended = {
        "usage": {
            "input_tokens": stats.prompt_tokens, "output_tokens": stats.new_tokens,
            "total_tokens": stats.prompt_tokens + stats.new_tokens,
            "input_tokens_details": {"cached_tokens": stats.reused_tokens},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        "timings": timings(stats),
    }  # fmt: skip
    return {
        "id": id, "object": "response", "created_at": int(time.time()), "model": model, "output": items,
        "status": "in_progress" if reason is None else "incomplete" if cut else "completed",
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": None, "top_p": None,
        "tool_choice": "auto", "tools": [], "store": False,
    } | (ended if reason else {"usage": None})  # fmt: skip


async def chunks(exchange: Exchange, model: str) -> AsyncIterator[bytes]:
    """Yield the reply as a stream of named, numbered events."""
    writer = _Writer(model)
    for chunk in writer.begin():
        yield chunk
    async for event in exchange:
        for chunk in writer.take(event):
            yield chunk


class _Writer:
    """Writes the events of one stream: consecutive items, each opened, filled and closed."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"resp_{secrets.token_hex(12)}"
        self._numbers = count()
        self._done: list[dict[str, Any]] = []
        self._kind = ""
        self._item: dict[str, Any] = {}
        self._text = ""

    def begin(self) -> Iterator[bytes]:
        response = _response(self._model, self._id, [], None, Stats())
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def take(self, event: object) -> Iterator[bytes]:
        match event:
            case Piece(text, kind):
                yield from self._into("message" if kind == "answer" else "reasoning", text)
            case CallPiece(index, id, name, arguments):
                if id:
                    yield from self._open(f"call {index}", _call_item(ToolCall(id, name, "")))
                yield from self._delta("response.function_call_arguments.delta", arguments)
            case Finished(reason, stats):
                yield from self._close()
                response = _response(self._model, self._id, self._done, reason, stats)
                yield self._event(f"response.{response['status']}", response=response)

    def _into(self, kind: str, text: str) -> Iterator[bytes]:
        if kind != self._kind:
            yield from self._open(kind, _item(kind, "") | {"content": []})
            if kind == "message":
                yield self._event("response.content_part.added", **self._place(), content_index=0, part=_part(""))
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        yield from self._delta(name, text, content_index=0)

    def _open(self, kind: str, item: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._kind, self._item, self._text = kind, item, ""
        shown = item | {"status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._done), item=shown)

    def _delta(self, name: str, text: str, **extra: Any) -> Iterator[bytes]:
        self._text += text
        if text:
            yield self._event(name, **self._place(), delta=text, **extra)

    def _close(self) -> Iterator[bytes]:
        place, text, kind = self._place(), self._text, self._kind
        if not kind:
            return
        if kind == "message":
            yield self._event("response.output_text.done", **place, content_index=0, text=text)
            yield self._event("response.content_part.done", **place, content_index=0, part=_part(text))
        elif kind == "reasoning":
            yield self._event("response.reasoning_text.done", **place, content_index=0, text=text)
        else:
            yield self._event("response.function_call_arguments.done", **place, arguments=text)
        whole = self._item | {"arguments": text} if kind.startswith("call") else _item(kind, text, self._item["id"])
        yield self._event("response.output_item.done", output_index=len(self._done), item=whole)
        self._done.append(whole)
        self._kind = ""

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item.get("id", ""), "output_index": len(self._done)}

    def _event(self, name: str, **content: Any) -> bytes:
        return data({"type": name, "sequence_number": next(self._numbers)} | content, name)
