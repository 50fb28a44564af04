"""Server-sent events: a stream that keeps its connection alive while nothing is said, and ends when its client left."""

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
    """One event: its JSON, and its name where the interface names events."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """Sends `chunks` as they come. `finish` is awaited at the end, however it comes."""

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
        async for chunk in with_pings(self._chunks, self._limits.ping_s):
            async with asyncio.timeout(self._limits.send_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_pings(chunks: AsyncIterator[bytes], every_s: float) -> AsyncIterator[bytes]:
    """The same chunks, with comments between them that keep clients from giving up."""
    following = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            done, _ = await asyncio.wait((following,), timeout=every_s)
            if not done:
                yield PING
                continue
            if (chunk := following.result()) is None:
                return
            yield chunk
            following = asyncio.ensure_future(anext(chunks, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
