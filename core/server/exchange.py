"""A request's run through the engine, seen from the server's event loop: its events as they arrive, or its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from core.events import Drawn, Event, Failed, Finished, FinishReason, Piece, Stats, ToolCall, ToolCallPiece
from core.server.activity import Activity, Live
from core.server.backend import Backend, Job, Work
from core.server.errors import ApiError, from_engine


class Exchange:
    """An async iterator of the engine's events; raises ApiError for a Failed. `stop` ends the work at any time."""

    def __init__(self, backend: Backend, activity: Activity, live: Live, work: Work, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._activity, self._live = activity, live
        self._first: Event | None = None
        self.ended = False
        self._job = Job(live.client, work, self._tell)
        self._timer = self._loop.call_later(limit_s, self._job.stop)
        activity.begin(live)
        backend.submit(self._job)

    def stop(self) -> None:
        """End the work if it is still running."""
        self.ended = True
        self._timer.cancel()
        self._job.stop()
        self._activity.end(self._live)

    def abandon(self) -> None:
        """End the work and whoever waits for it, because the server closes."""
        self._job.stop()
        self._events.put_nowait(None)

    async def begun(self, seconds: float) -> None:
        """Wait up to `seconds` for the engine's first event. Raises ApiError if the engine refused the request."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._first = await self._events.get()
        if isinstance(self._first, Failed):
            raise from_engine(self._first.error)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        event = self._first
        while True:
            event = event or await self._events.get()
            if event is None:
                return
            if isinstance(event, Failed):
                raise from_engine(event.error)
            self._activity.heard(self._live, event)
            if isinstance(event, Finished) and event.reason == "stopped":
                raise ApiError(503, "The reply was stopped where the server runs.", code="stopped")
            yield event
            event = None

    def _tell(self, event: Event | None) -> None:
        # The loop may already be closed if the server was stopped.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


@dataclass
class WholeReply:
    """A complete reply."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    reason: FinishReason = "stop"
    stats: Stats = field(default_factory=Stats)
    stop_text: str = ""

    def add(self, event: Event) -> None:
        """Add one event."""
        match event:
            case Piece(text, "reasoning"):
                self.reasoning += text
            case Piece(text):
                self.text += text
            case ToolCallPiece(index, id, name, arguments):
                self._call(index, id, name, arguments)
            case Drawn():
                self.drawn.append(event)
            case Finished(reason, stats, stop_text):
                self.reason, self.stats, self.stop_text = reason, stats, stop_text

    def _call(self, index: int, id: str, name: str, arguments: str) -> None:
        if index == len(self.calls):
            self.calls.append(ToolCall(id, name, arguments))
        else:
            before = self.calls[index]
            self.calls[index] = ToolCall(before.id, before.name, before.arguments + arguments)


async def collect(exchange: Exchange) -> WholeReply:
    """Return the complete answer. Raises ApiError."""
    answer = WholeReply()
    finished = False
    async for event in exchange:
        answer.add(event)
        finished = finished or isinstance(event, Finished)
    if not finished:
        raise ApiError(503, "The server was stopped.")
    return answer
