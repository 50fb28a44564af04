"""A server at an address: the SDK's streamable HTTP over a client that limits the size of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.hub.proxy import is_own
from core.tools.server import ToolServer

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MOST_BYTES = 32 << 20
CONNECT_S, SILENCE_S = 10.0, 900.0


@asynccontextmanager
async def http(server: ToolServer) -> AsyncIterator[TransportStreams]:
    """Connect to the server at `server.url`; its headers are sent only there."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    # A proxy cannot reach this computer's loopback addresses.
    here = is_own(urlsplit(server.url).hostname or "")
    client = httpx2.AsyncClient(
        headers=dict(server.headers),
        timeout=httpx2.Timeout(CONNECT_S, read=SILENCE_S),
        trust_env=not here,
        event_hooks={"response": [_bound]},
    )
    async with client, streamable_http_client(server.url, http_client=client) as streams:
        yield streams


async def _bound(response: Any) -> None:
    """Let the response fail once it is longer than any reasonable one."""
    import httpx2

    inner = response.stream

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MOST_BYTES
            async for part in inner:
                left -= len(part)
                if left < 0:
                    raise httpx2.ReadError("the answer is too long")
                yield part

        async def aclose(self) -> None:
            await inner.aclose()

    response.stream = Bounded()
