"""One server's connection in the tools' event loop: starting, listing tools, calling, ending, with a sentence for every
failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.errors import HeteGenError, ToolFailed
from core.sentence import sentence
from core.tools.http import http
from core.tools.lines import Lines
from core.tools.results import as_result
from core.tools.server import ServerStatus, ServerTool, ToolResult, ToolServer
from core.tools.stdio import stdio

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger(__name__)

START_S, CALL_S = 90.0, 300.0
"""A program that is fetched at its first start takes a while; a call may search or build something."""
MOST_TOOLS = 512


class Link:
    """A connection to one server. Everything runs in the loop's thread; `changed` is called there."""

    def __init__(self, server: ToolServer, lines: Lines, changed: Callable[[], None]) -> None:
        self.server = server
        self.status = ServerStatus(server.name)
        self._lines = lines
        self._lines.hide(server.secrets)
        self._changed = changed
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._relisting: asyncio.Task[None] | None = None  # asyncio keeps only weak references to tasks
        self._settled = asyncio.Event()
        self._over = asyncio.Event()
        self._lost: HeteGenError | None = None

    def start(self) -> None:
        """Connect, unless already connected."""
        if self._task is None or self._task.done():
            self._settled.clear()
            self._over.clear()
            self._lost = None
            self._set(ServerStatus(self.server.name, "starting"))
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Disconnect, and end the program if one was started."""
        self._over.set()
        if self._task is not None:
            if not self._settled.is_set():
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._set(ServerStatus(self.server.name))

    async def call(self, tool: str, arguments: Mapping[str, Any], longest: int) -> ToolResult:
        """Call a tool and return its answer; restarts a server that has ended. Raises ToolFailed."""
        self.start()
        await self._settled.wait()
        if self._client is None:
            raise self.status.error or ToolFailed(sentence("{} is not running.", self.server.name))
        self._lines.add(f"→ {tool}")
        try:
            answer = await self._client.call_tool(tool, dict(arguments), read_timeout_seconds=CALL_S)
            result = as_result(answer, longest)
        except asyncio.CancelledError:
            self._lines.add(f"■ {tool}")
            raise
        except Exception as error:  # A server can make the SDK fail in any way, and each is told to the model.
            failed = self._lost or self._failure(error)
            self._lines.add(f"✕ {tool}: {failed}")
            raise failed from error
        self._lines.add(f"{'✕' if result.failed else '✓'} {tool}: {len(result.text)}")
        return result

    async def _run(self) -> None:
        self._lines.add("…")
        try:
            async with AsyncExitStack() as stack:
                await self._connect(stack)
                self._settled.set()
                await self._over.wait()
                self._client = None
        except Exception as error:  # noqa: BLE001  As for a call; the thread must live on.
            self._lost = self._lost or self._failure(error)
        finally:
            self._client = None
            self._settled.set()
        if self._lost is not None:
            self._lines.add(f"✕ {self._lost}")
            self._set(ServerStatus(self.server.name, "failed", error=self._lost))

    async def _connect(self, stack: AsyncExitStack) -> None:
        from mcp import Client
        from mcp_types import Implementation

        server = self.server
        transport = http(server) if server.url else stdio(server, self._lines.add, self._on_lost)
        client = Client(
            transport,
            cache=None,
            client_info=Implementation(name="HeteGen", version="1"),
            logging_callback=self._on_log,
            message_handler=self._on_message,
        )
        async with asyncio.timeout(START_S):
            await stack.enter_async_context(client)
            tools = await _listed(client)
        self._client = client
        self._lines.add("✓ " + ", ".join(tool.name for tool in tools))
        self._set(ServerStatus(server.name, "on", tools))

    async def _on_log(self, params: Any) -> None:
        self._lines.add(f"{params.level}: {params.data}")

    async def _on_message(self, message: Any) -> None:
        from mcp_types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification) and self._client is not None:
            # Not awaited here: the reader that receives the answer is waiting for this handler.
            self._relisting = asyncio.create_task(self._relist(self._client))

    async def _relist(self, client: Client) -> None:
        try:
            tools = await _listed(client)
        except Exception as error:  # noqa: BLE001  As for a call; the tools known so far stay.
            self._lines.add(f"✕ {self._failure(error)}")
        else:
            self._set(replace(self.status, tools=tools))

    def _on_lost(self, error: HeteGenError) -> None:
        self._lost = error
        self._over.set()

    def _set(self, status: ServerStatus) -> None:
        self.status = status
        self._changed()

    def _failure(self, error: BaseException) -> HeteGenError:
        """Return the error for a failure between the SDK and the server."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, HeteGenError):
            return error
        log.info("The tool server %s failed: %r", self.server.name, type(error))
        name = self.server.name
        if isinstance(error, TimeoutError) or getattr(error, "code", None) == _timeout_code():
            return ToolFailed(
                sentence("{} does not answer.", name), "It was given up after a while.", "Look at its log."
            )
        said = " ".join(str(error).split())[:300] or type(error).__name__
        return ToolFailed(sentence("{} failed.", name), sentence("It says: {}.", said.rstrip(".")), "Look at its log.")


async def _listed(client: Client) -> tuple[ServerTool, ...]:
    """Return the server's tools, page by page."""
    found: list[ServerTool] = []
    cursor: str | None = None
    while len(found) < MOST_TOOLS:
        page = await client.list_tools(cursor=cursor)
        found += [ServerTool(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
        cursor = page.next_cursor
        if not cursor or not page.tools:
            break
    return tuple(found[:MOST_TOOLS])


def _timeout_code() -> int:
    from mcp_types import REQUEST_TIMEOUT

    return REQUEST_TIMEOUT
