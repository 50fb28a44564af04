"""Shared parts of the converters from each API to the engine's `Request`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from core.documents.document import picture_in
from core.events import Message, Request, Tool, ToolCall
from core.server.errors import ApiError
from core.server.schemas import Content, Json, Part, ResponseFormat, SamplingFields, TextFormat

ANY_OBJECT = '{"type": "object"}'
MAX_STOPS = 64
PICTURE_PARTS = ("image_url", "input_image", "image")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def text_of(content: Content) -> str:
    """Return a message's text. Raises ApiError for audio and files, which are not supported."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in (*TEXT_PARTS, *PICTURE_PARTS):
            raise ApiError(400, f"Only text and pictures can be sent, not {part.type[:40]!r}.", param="messages")
    return "\n".join(part.text for part in content if part.text)


def pictures_of(content: Content) -> tuple[bytes, ...]:
    """Return a message's inline pictures. Raises ApiError for addresses: nothing is fetched."""
    parts = content if isinstance(content, list) else ()
    return tuple(_picture(part) for part in parts if part.type in PICTURE_PARTS)


def _picture(part: Part) -> bytes:
    if part.source is not None:
        return picture_of_source(part.source)
    given = part.image_url or ""
    return _from_url(str(given.get("url", "")) if isinstance(given, dict) else given)


def picture_of_source(source: Json) -> bytes:
    """Decode a picture in Anthropic's format. Raises ApiError."""
    return _from_url(f"data:{source.get('media_type')};base64,{source.get('data')}")


def _from_url(url: str) -> bytes:
    if not (data := picture_in(url)):
        words = "A picture must be a data URL (base64) of PNG, JPEG, WebP or GIF; no address is fetched."
        raise ApiError(400, words, param="messages")
    return data


def message(
    role: str,
    content: Content,
    calls: Sequence[ToolCall] = (),
    call_id: str = "",
    reasoning: str = "",
) -> Message:
    """Build an engine message. Raises ApiError."""
    text = text_of(content)
    match role:
        case "developer" | "system":
            return Message("system", text)
        case "tool" | "function":
            return Message("tool", text, tool_call_id=call_id)
        case "assistant":
            return Message("assistant", text, reasoning, tuple(calls))
        case _:
            return Message("user", text, pictures=pictures_of(content))


def arguments_of(value: str | Json | None) -> str:
    """Return a call's arguments as JSON text, in whichever form a client sends them."""
    return value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False)


def stops(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the stop strings. Raises ApiError."""
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if len(found) > MAX_STOPS:
        raise ApiError(400, f"At most {MAX_STOPS} stop strings can be given.", param="stop")
    return tuple(text for text in found if text)


def only_one(wish: SamplingFields) -> None:
    """Raise ApiError if more than one reply is requested."""
    if wish.n not in (None, 1):
        raise ApiError(400, "Only one reply can be made at a time: n must be 1.", param="n")


def schema_of(wanted: ResponseFormat | TextFormat | None) -> str | None:
    """Return the JSON schema that the answer must follow; None for free text. Raises ApiError."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    inner = wanted.json_schema if isinstance(wanted, ResponseFormat) else wanted
    if inner is None or inner.schema_ is None:
        raise ApiError(400, "A format of the type json_schema needs a schema.", param="response_format")
    return json.dumps(inner.schema_)


def forced(choice: str | Json | None, tools: Sequence[Tool]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Return the tools to offer, and the names of those of which one must be called. Raises ApiError."""
    names = tuple(tool.name for tool in tools)
    if choice == "none":
        return (), ()
    if choice in (None, "auto"):
        return tuple(tools), ()
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return forced(choice.get("mode", "auto"), tools)
    if choice in ("required", "any"):
        wanted = names
    elif isinstance(choice, dict):
        wanted = _named(choice)
    else:
        raise ApiError(400, "tool_choice must be none, auto, required or name a function.", param="tool_choice")
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        raise ApiError(400, "tool_choice names no tool of this request.", param="tool_choice")
    return tuple(tools), wanted


def _named(choice: Json) -> tuple[str, ...]:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return (name,) if isinstance(name, str) else ()


def with_turns(messages: Sequence[Message], **rest: Any) -> Request:
    """Build the request for the next turn; a conversation that ends with an assistant turn is continued."""
    unfinished = bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls
    return Request(tuple(messages), whole=True, continue_reply=unfinished, **rest)
