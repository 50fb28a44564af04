"""The tools' thread: an event loop that holds every server connection, behind a non-blocking interface."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import ToolFailed
from core.sentence import sentence
from core.tools.lines import Lines
from core.tools.link import Link
from core.tools.log_file import LogFile
from core.tools.server import ServerStatus, ToolResult, ToolServer

TELL_S = 0.1
Changed = Callable[[tuple[ServerStatus, ...]], None]


class ToolHost:
    """Keeps servers connected. `changed` is called in the tools' thread. The thread starts with the first server."""

    def __init__(self, changed: Changed, logs: Path | None = None) -> None:
        """`logs`: the folder for the servers' logs; None = in memory only."""
        self._changed, self._logs = changed, logs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        # The attributes below belong to the loop's thread.
        self._over = asyncio.Event()
        self._changing = asyncio.Lock()  # held while links are opened and closed
        self._links: dict[str, Link] = {}
        self._lines: dict[str, Lines] = {}
        self._telling = False

    def use(self, servers: Sequence[ToolServer]) -> None:
        """Switch to these servers: start those that are on, end all others."""
        if self._thread is not None or servers:
            self._run(self._use(tuple(servers)))

    def restart(self, server: ToolServer) -> None:
        """End a server and start it again."""
        self._run(self._restart(server))

    def call(self, server: str, tool: str, arguments: Mapping[str, Any], longest: int) -> Future[ToolResult]:
        """Call a tool. The future raises ToolFailed; cancelling it abandons the call."""
        return self._run(self._call(server, tool, arguments, longest))

    def close(self) -> None:
        """End every server and the thread."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()
            self._thread = None

    def _run(self, work: Any) -> Future[Any]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_loop, name="tools", daemon=True)
            self._thread.start()
            self._ready.wait()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _keep_loop(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        self._ready.set()
        await self._over.wait()
        async with self._changing:
            await asyncio.gather(*(link.close() for link in self._links.values()))
        for lines in self._lines.values():
            lines.write()

    async def _use(self, servers: tuple[ToolServer, ...]) -> None:
        async with self._changing:
            if not self._over.is_set():
                await self._end_others(servers)
                for server in servers:
                    if server.name not in self._links:
                        self._add(server)
        self._tell_soon()

    async def _end_others(self, servers: tuple[ToolServer, ...]) -> None:
        """End the servers that are not among these, and forget the logs of those that are gone."""
        wanted = {server.name: server for server in servers}
        gone = [link for name, link in self._links.items() if wanted.get(name) != link.server]
        for link in gone:
            del self._links[link.server.name]
        await asyncio.gather(*(link.close() for link in gone))
        for name in [name for name in self._lines if name not in wanted]:
            self._lines.pop(name).forget()

    def _add(self, server: ToolServer) -> Link:
        if (lines := self._lines.get(server.name)) is None:
            lines = self._lines[server.name] = self._made_lines(server.name)
        link = self._links[server.name] = Link(server, lines, self._tell_soon)
        if server.on:
            link.start()
        return link

    def _made_lines(self, name: str) -> Lines:
        return Lines(self._tell_soon, None if self._logs is None else LogFile(self._logs, name))

    async def _restart(self, server: ToolServer) -> None:
        async with self._changing:
            if link := self._links.pop(server.name, None):
                await link.close()
            if not self._over.is_set():
                self._add(server).start()

    async def _call(self, server: str, tool: str, arguments: Mapping[str, Any], longest: int) -> ToolResult:
        link = self._links.get(server)
        if link is None or not link.server.on or self._over.is_set():
            raise ToolFailed(sentence("{} is switched off.", server), "", "Switch it on, and ask again.")
        return await link.call(tool, arguments, longest)

    def _tell_soon(self) -> None:
        """Report changes, a few times a second at most."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def _tell(self) -> None:
        self._telling = False
        for lines in self._lines.values():
            lines.write()
        shown = (replace(link.status, log=self._lines[name].shown) for name, link in self._links.items())
        self._changed(tuple(shown))
