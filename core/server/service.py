"""The common part of all endpoints: start the work, stream or collect it, log it, end it when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from core.events import Counted, Event, Failed, Finished, Request, Stats, Stop
from core.server.activity import Activity, Live
from core.server.backend import Backend, EngineLike, Work
from core.server.errors import ApiError, error_body
from core.server.exchange import Exchange, WholeReply, collect
from core.server.options import ServerOptions
from core.server.sse import EventStream, data, left

Chunks = Callable[[Exchange], AsyncIterator[bytes]]


class Service:
    """The engine, options and activity of one server."""

    def __init__(self, backend: Backend, options: ServerOptions, activity: Activity) -> None:
        self.backend = backend
        self.options = options
        self.activity = activity
        self.started = int(time.time())
        self._exchanges: set[Exchange] = set()

    def model(self, wanted: str | None, *, chat: bool = True) -> str:
        """Return the id of the model to answer with: the one that is wanted if it is installed and requests may choose,
        the one in use for any other name. Raises ApiError."""
        name, loaded = self.backend.name(), self.backend.model()
        if not name:
            raise ApiError(503, "No model is loaded.", code="model_not_loaded")
        if wanted and wanted != name and wanted in self.backend.installed():
            if self.backend.loader(wanted) is not None:
                return wanted
            raise ApiError(
                404,
                f"{wanted} is not loaded; {name} is. Load it first, or leave the model's name out.",
                code="model_not_found",
                param="model",
            )
        if chat and loaded is not None and not loaded.can_chat:
            raise ApiError(400, "This model has no chat template; use /v1/completions.", param="model")
        return name

    def ask(self, http: HttpRequest, model: str, request: Request) -> Exchange:
        """Start answering a request with a model. Raises ApiError."""
        return self._start(http, self._with(model, lambda engine, stop: engine.chat(request, stop)))

    async def count(self, http: HttpRequest, model: str, request: Request) -> int:
        """Return the number of tokens of a request's prompt for a model. Raises ApiError."""
        exchange = self._start(http, self._with(model, lambda engine, stop: engine.count(request)))
        try:
            async for event in exchange:
                if isinstance(event, Counted):
                    return event.tokens
        finally:
            exchange.stop()
        raise ApiError(503, "The server was stopped.")

    def _with(self, model: str, work: Work) -> Work:
        """Return the work preceded by loading its model, of which only a failure or a stop is told."""
        load = self.backend.loader(model)
        if load is None:
            return work

        def loaded(engine: EngineLike, stop: Stop) -> Iterator[Event]:
            for event in load(engine, stop):
                if isinstance(event, Failed | Finished):
                    yield event
                    return
            yield from work(engine, stop)

        return loaded

    async def whole(self, http: HttpRequest, exchange: Exchange, shape: Callable[[WholeReply], Any]) -> Response:
        """Return the answer as one JSON object. Raises ApiError, ClientDisconnect."""
        answering = asyncio.ensure_future(collect(exchange))
        leaving = asyncio.ensure_future(left(http.receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exchange.stop()
            leaving.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        if answering.cancelled():
            raise ClientDisconnect
        return JSONResponse(shape(answering.result()))

    async def stream(self, http: HttpRequest, exchange: Exchange, chunks: Chunks) -> Response:
        """Return the answer as server-sent events. Raises ApiError if the engine refuses the request at once."""
        try:
            await exchange.begun(self.options.limits.refusal_s)
        except ApiError:
            exchange.stop()
            raise

        async def finish() -> None:
            exchange.stop()

        return EventStream(_with_errors(chunks(exchange), http.url.path), self.options.limits, finish)

    def _start(self, http: HttpRequest, work: Work) -> Exchange:
        limits = self.options.limits
        if self.activity.running >= limits.waiting:
            raise ApiError(429, f"{limits.waiting} requests wait already; try again later.", code="too_many_requests")
        exchange = Exchange(self.backend, self.activity, self._live(http), work, limits.reply_s)
        self._exchanges = {one for one in self._exchanges if not one.ended} | {exchange}
        return exchange

    def close(self) -> None:
        """End every reply, running or waiting; called in the server's loop."""
        for exchange in self._exchanges:
            exchange.abandon()

    def _live(self, http: HttpRequest) -> Live:
        live = self.activity.live(client_of(http), http.url.path)
        http.state.live = live
        return live


def client_of(http: HttpRequest) -> str:
    """Return the client as shown to the user: address and user agent."""
    address = http.client.host if http.client else "?"
    program = http.headers.get("user-agent", "").partition(" ")[0]
    shown = "".join(character for character in program[:60] if character.isprintable())
    return f"{address} {shown}".strip()


def timings(stats: Stats) -> dict[str, Any]:
    """Return the figures of one reply in llama-server's format: counts, milliseconds, tokens per second."""
    read = stats.prompt_tokens - stats.reused_tokens
    return {
        "prompt_n": read,
        "cache_n": stats.reused_tokens,
        "prompt_ms": _ms(read, stats.prompt_tok_s),
        "prompt_per_second": stats.prompt_tok_s,
        "predicted_n": stats.new_tokens,
        "predicted_ms": _ms(stats.new_tokens, stats.mean_tok_s),
        "predicted_per_second": stats.mean_tok_s,
        "time_to_first_token_ms": None if stats.ttft_s is None else round(1000 * stats.ttft_s, 3),
    }


def _ms(count: int, rate: float | None) -> float | None:
    return round(1000 * count / rate, 3) if rate else None


async def _with_errors(chunks: AsyncIterator[bytes], path: str) -> AsyncIterator[bytes]:
    """Append an error event to the stream: the HTTP status has already been sent."""
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        yield data(error_body(error, path), "error" if path.startswith("/v1/messages") else "")
