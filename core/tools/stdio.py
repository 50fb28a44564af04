"""A server that is a child process: JSON lines over pipes, with limits on its output and a guaranteed end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from core.errors import HeteGenError, ToolFailed
from core.own_process import without_window
from core.sentence import sentence
from core.tools.batch import batch_line, is_batch
from core.tools.server import ToolServer

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

LONGEST_LINE = 32 << 20
STRAY_LINES, MESSAGES_A_SECOND, BYTES_A_SECOND = 200, 1000, 4 << 20
"""Limits on non-message lines of its output, and on messages and error output bytes per second; a program that exceeds
one is not a tool server."""
GRACE_S, CODE_S = 2.0, 10.0
"""Time for a program to end by itself, and for its exit code to be known once it has closed its output."""
Tell = Callable[[str], None]
Lost = Callable[[HeteGenError], None]


@asynccontextmanager
async def stdio(server: ToolServer, tell: Tell, lost: Lost) -> AsyncIterator[TransportStreams]:
    """Start the program and connect to it. `tell` receives its error output, `lost` the reason if it ends by itself.

    Raises ToolFailed if it cannot be started.
    """
    import anyio

    process = await _start(server)
    incoming, read = anyio.create_memory_object_stream[Any](0)
    write, outgoing = anyio.create_memory_object_stream[Any](0)
    hearing = _Hearing(process, server.name, tell, lost)
    work = (hearing.messages(incoming), hearing.errors(), _speak(process, outgoing))
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield read, write
    finally:
        hearing.wanted = False
        for stream in (read, write, incoming, outgoing):
            stream.close()
        await asyncio.shield(_end(process, tasks))


async def _start(server: ToolServer) -> asyncio.subprocess.Process:
    from mcp.client.stdio import get_default_environment

    # Not the whole environment, which may hold other programs' keys.
    environment = {**get_default_environment(), **server.environment}
    # On Windows, npx and the like are scripts, which are only found with their extension.
    program = shutil.which(server.command, path=environment.get("PATH")) or server.command
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": server.folder or None,
        "env": environment, "limit": LONGEST_LINE, "creationflags": without_window(),
        "start_new_session": os.name == "posix",
    }  # fmt: skip
    try:
        if os.name == "nt" and is_batch(program):
            return await asyncio.create_subprocess_shell(batch_line(program, server.args), **options)
        return await asyncio.create_subprocess_exec(program, *server.args, **options)
    except (OSError, ValueError) as error:
        raise ToolFailed(
            sentence("{} could not be started.", server.name),
            sentence("{}: {}.", server.command, getattr(error, "strerror", None) or error),
            "Check its command, and that the program is installed.",
        ) from error


class _Hearing:
    """Forwards a program's messages; all other output goes to the log, within limits."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, tell: Tell, lost: Lost) -> None:
        self._process, self._name, self._tell, self._lost = process, name, tell, lost
        self.wanted = True
        """False once the program is being ended."""
        self._stray = self._second = 0
        self._counts: Counter[str] = Counter()

    async def messages(self, incoming: Any) -> None:
        """Read the program's output to the end, discarding what comes after the last listener."""
        from anyio import BrokenResourceError, ClosedResourceError

        assert self._process.stdout is not None
        with suppress(BrokenResourceError, ClosedResourceError), incoming:
            async for message in self._messages(self._process.stdout):
                await incoming.send(message)
        # Keep draining: a full pipe would keep the program from ending.
        while await self._process.stdout.read(1 << 16):
            pass

    async def errors(self) -> None:
        """Read the program's error output to the end."""
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(1 << 16):
            if self.wanted:
                self._tell(part.decode("utf-8", "replace"))
                if self._count("bytes", len(part)) > BYTES_A_SECOND:
                    self._stop()

    async def _messages(self, output: asyncio.StreamReader) -> AsyncIterator[Any]:
        while self.wanted:
            try:
                line = await output.readline()
            except ValueError:  # longer than LONGEST_LINE
                self._stop()
                return
            if not line:
                await self._end()
                return
            if (message := self._read(line)) is not None:
                yield message

    def _read(self, line: bytes) -> Any:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        try:
            message = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            self._stray += bool(line.strip())
            self._tell(line[:1000].decode("utf-8", "replace"))
            message = None
        if self._stray > STRAY_LINES or self._count("messages", 1) > MESSAGES_A_SECOND:
            self._stop()
        return message

    def _count(self, what: str, more: int) -> int:
        """Return the amount counted within the current second."""
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second = second
            self._counts.clear()
        self._counts[what] += more
        return self._counts[what]

    def _stop(self) -> None:
        why = "It sends what no tool server sends."
        self._say(ToolFailed(sentence("{} was stopped.", self._name), why, "Look at its log."))

    async def _end(self) -> None:
        await _has_ended(self._process, CODE_S)
        if (code := self._process.returncode) is None:
            what, why = sentence("{} was stopped.", self._name), "It has closed its output."
        else:
            what, why = sentence("{} has ended.", self._name), sentence("Its exit code is {}.", code)
        self._say(ToolFailed(what, why, "Look at its log."))

    def _say(self, error: HeteGenError) -> None:
        if self.wanted:
            self.wanted = False
            self._lost(error)


async def _speak(process: asyncio.subprocess.Process, outgoing: Any) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        async for message in outgoing:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process, tasks: Sequence[asyncio.Future[None]]) -> None:
    """Close the program's input, wait briefly, then kill it and its children. Nothing of it is open afterwards."""
    assert process.stdin is not None
    process.stdin.close()
    family = _family(process.pid)
    await _has_ended(process)
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    await asyncio.wait(tasks, timeout=GRACE_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Told to the loop by another thread: a loop that is closed before that would leave the pipes open.
    await _has_ended(process)
    process._transport.close()  # type: ignore[attr-defined]  # a descendant may hold a pipe open


async def _has_ended(process: asyncio.subprocess.Process, longest_s: float = GRACE_S) -> None:
    """Wait until the program has ended, or for `longest_s`."""
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), longest_s)


def _family(pid: int) -> list[psutil.Process]:
    """Return the program and its descendants, identified now because process ids may be reused."""
    try:
        program = psutil.Process(pid)
        return [*program.children(recursive=True), program]
    except psutil.Error:
        return []
