"""Server-sent events: a stream that keeps an idle connection alive, and ends when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.server.options import Limits

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def data(content: dict[str, Any], event: str = "") -> bytes:
    """Encode one event: its JSON, and its name if the API names events."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """Sends `chunks` as they arrive. `finish` is always awaited at the end."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], limits: Limits, finish: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._chunks = chunks
        self._limits = limits
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._finish()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = _Writer(send, self._limits)
        pinging = asyncio.ensure_future(writer.ping())
        try:
            async for chunk in self._chunks:
                await writer.write(chunk)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Writer:
    """Sends chunks one after another, and a comment after a period of silence.

    There is no task per chunk: it would cost more than all other work for a token.
    """

    def __init__(self, send: Send, limits: Limits) -> None:
        self._send = send
        self._limits = limits
        self._one = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    async def write(self, chunk: bytes) -> None:
        """Send a chunk. Raises TimeoutError if the client does not read it."""
        async with self._one, asyncio.timeout(self._limits.send_s):
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._last = self._clock()

    async def ping(self) -> None:
        """Send keep-alive comments during silence, until cancelled."""
        while True:
            waited = self._clock() - self._last
            if waited >= self._limits.ping_s:
                await self.write(PING)
            else:
                await asyncio.sleep(self._limits.ping_s - waited)


async def left(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
