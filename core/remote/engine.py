"""A remote model with the interface of `core.engine.Engine`: the same requests, the same events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.documents.document import data_url
from core.errors import BadRequest, HeteGenError, ModelNotFound, NetworkError
from core.events import (
    Checked,
    Counted,
    Event,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    LoadOptions,
    Message,
    Piece,
    Request,
    Sampling,
    Stats,
    Stop,
    Tool,
    ToolCallPiece,
    never,
)
from core.remote.connection import Connection, Stopped
from core.remote.endpoint import Endpoint, parse_source
from core.sentence import sentence

STATS_EVERY_S = 0.25
SERVER_ERROR = 500
REASONING = ("reasoning_content", "reasoning")
"""Fields for reasoning: llama.cpp, vLLM and DeepSeek use the first, Ollama and newer vLLM the second."""
REASONS: Mapping[str, FinishReason] = {"length": "length"}

KeyOf = Callable[[str], str]
"""(address) -> the key for the server there, "" = none."""


class RemoteEngine:
    """Talks to one remote model at a time."""

    def __init__(self, key_of: KeyOf = lambda url: "") -> None:
        self._key_of = key_of
        self._endpoint: Endpoint | None = None
        self._context = 0

    def load(self, source: str | Path | None, options: LoadOptions, stop: Stop = never) -> Iterator[Event]:
        """Check that the server is there and has the model; if not, the server before stays. `options` apply to local
        models only."""
        began = time.perf_counter()
        try:
            endpoint = parse_source(str(source))
            found = _find(self._connection(endpoint), endpoint.model, stop)
            self._endpoint, self._context = replace(endpoint, model=found.name), found.context
            yield replace(found, load_s=time.perf_counter() - began)
        except Stopped:
            yield Finished("stopped", Stats())
        except HeteGenError as error:
            yield Failed(error)

    def check(self, source: str | Path | None, options: LoadOptions, stop: Stop = never) -> Iterator[Event]:
        """Find out whether the server is there and has the model. Yields Checked or Failed, nothing once stopped."""
        try:
            endpoint = parse_source(str(source))
            _find(self._connection(endpoint), endpoint.model, stop)
            yield Checked()
        except Stopped:
            return
        except HeteGenError as error:
            yield Failed(error)

    def chat(self, request: Request, stop: Stop = never) -> Iterator[Event]:
        """Answer the last message, as events that end with Finished or Failed."""
        try:
            if self._endpoint is None:
                raise BadRequest("No model is loaded.", "", "Load a model first.")
            if request.continue_reply:
                raise BadRequest("A remote reply cannot be continued.", "", "Ask for it again, or ask to go on.")
            yield from _Reply(self._endpoint.model, request, self._context).events(
                self._connection(self._endpoint), stop
            )
        except HeteGenError as error:
            yield Failed(error)

    def count(self, request: Request) -> Iterator[Event]:
        """Estimate the prompt's tokens: a remote model's tokenizer is not available."""
        yield Counted(sum(len(message.content) for message in request.messages) // 4)

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        """Do nothing: a remote model uses no memory of this computer."""
        return iter(())

    def close(self) -> None:
        """Forget the server."""
        self._endpoint = None

    def _connection(self, endpoint: Endpoint) -> Connection:
        return Connection(endpoint.url, self._key_of(endpoint.url))


class _Reply:
    """One reply while it arrives."""

    def __init__(self, model: str, request: Request, context: int) -> None:
        self._body = body_of(model, request)
        self._began = self._shown = time.perf_counter()
        self._first_at: float | None = None
        self._stats = Stats(context_limit=context, seed=request.sampling.seed)
        self._reason: FinishReason = "stop"
        self._complete = False

    def events(self, connection: Connection, stop: Stop) -> Iterator[Event]:
        try:
            for part in connection.events("/chat/completions", self._body, stop):
                yield from self._read(part, connection)
                if stop():
                    raise Stopped
        except Stopped:
            self._reason = "stopped"
        except NetworkError:
            # Some servers close the stream without an end mark after the finish reason.
            if not self._complete:
                raise
        yield Finished(self._reason, self._figures())

    def _read(self, part: Mapping[str, Any], connection: Connection) -> list[Event]:
        """Return the events of one chunk of the stream. Raises HeteGenError for an error within it, and for invalid
        chunks."""
        try:
            if part.get("error"):
                raise connection.refusal(SERVER_ERROR, json.dumps(part).encode())
            return list(self._part(part))
        except (AttributeError, TypeError, ValueError) as error:
            raise connection.strange() from error

    def _part(self, part: Mapping[str, Any]) -> Iterator[Event]:
        if isinstance(usage := part.get("usage"), dict):
            self._used(usage)
        for choice in part.get("choices") or ():
            yield from self._pieces(choice.get("delta") or choice.get("message") or {})
            if reason := choice.get("finish_reason"):
                self._complete = True
                self._reason = REASONS.get(reason, "stop")
        if (now := time.perf_counter()) - self._shown >= STATS_EVERY_S:
            self._shown = now
            yield self._figures()

    def _pieces(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        thought = next((delta[name] for name in REASONING if delta.get(name)), "")
        said = delta.get("content") or ""
        calls = delta.get("tool_calls") or ()
        if thought or said or calls:
            self._first_at = self._first_at or time.perf_counter()
            # An estimate, replaced when the server reports its own count.
            self._stats = replace(self._stats, new_tokens=self._stats.new_tokens + 1)
        if thought:
            yield Piece(str(thought), "reasoning")
        if said:
            yield Piece(str(said))
        for call in calls:
            asked = call.get("function") or {}
            yield ToolCallPiece(
                int(call.get("index") or 0), call.get("id") or "", asked.get("name") or "", asked.get("arguments") or ""
            )

    def _used(self, usage: Mapping[str, Any]) -> None:
        prompt, new = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        known = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self._stats = replace(
            self._stats, prompt_tokens=prompt, new_tokens=new, reused_tokens=known, context_used=prompt + new
        )

    def _figures(self) -> Stats:
        if self._first_at is None:
            return self._stats
        seconds, count = time.perf_counter() - self._first_at, self._stats.new_tokens - 1
        rate = count / seconds if seconds > 0 and count > 0 else None
        return replace(self._stats, ttft_s=self._first_at - self._began, tok_s=rate, mean_tok_s=rate)


def body_of(model: str, request: Request) -> dict[str, Any]:
    """Convert a request to OpenAI's chat completions format, without fields that were not set."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
    return body


def _function(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.pictures:
        shown = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in message.pictures]
        said = [{"type": "text", "text": message.content}] if message.content else []
        body["content"] = [*shown, *said]
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return {**body, "tool_call_id": message.tool_call_id} if message.tool_call_id else body


def _sampling(sampling: Sampling) -> dict[str, Any]:
    names = {"temperature": "temperature", "top_p": "top_p", "seed": "seed", "max_tokens": "max_new_tokens"}
    values = {theirs: getattr(sampling, ours) for theirs, ours in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def models_of(answer: Any) -> list[dict[str, Any]]:
    """Return the models in a server's answer to /models: OpenAI's list, or a bare one."""
    listed = answer.get("data") if isinstance(answer, dict) else answer
    entries: Sequence[Any] = listed if isinstance(listed, list) else ()
    return [one for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str)]


def _find(connection: Connection, wanted: str, stop: Stop) -> Loaded:
    """Return the model named `wanted`, or the server's first; a server without a list is trusted. Raises
    HeteGenError."""
    try:
        there = models_of(connection.get("/models", stop))
    except ModelNotFound:
        there = []
    found = next((one for one in there if not wanted or one["id"] == wanted), None)
    if found is None and (there or not wanted):
        names = ", ".join(one["id"] for one in there[:5])
        raise ModelNotFound(
            sentence("{} has no model named {}.", connection.host, wanted)
            if wanted
            else sentence("{} names no model.", connection.host),
            sentence("It has {}.", names) if names else "",
            "Choose one of its models.",
        )
    return Loaded(
        name=found["id"] if found else wanted,
        architecture="remote",
        format="remote",
        context=_context(found or {}),
        parameters=0,
        weight_bytes=0,
        load_s=0.0,
        sees=True,  # servers do not state it; one without vision refuses pictures
    )


def _context(model: Mapping[str, Any]) -> int:
    """Return the context length in the fields of our own server, vLLM or llama.cpp; 0 = not stated."""
    said = model.get("meta")
    meta = said if isinstance(said, dict) else {}
    for value in (model.get("context_length"), model.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")):
        if isinstance(value, int):
            return value
    return 0
