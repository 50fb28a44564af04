"""A running server: a socket and uvicorn in a thread of its own, with an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from threading import Thread

import uvicorn

from core.errors import BadRequest
from core.sentence import sentence
from core.server.activity import Activity
from core.server.app import make_app
from core.server.backend import Backend
from core.server.http_protocol import with_header_limit
from core.server.options import DEFAULT_PORT, ServerOptions
from core.server.service import Service

log = logging.getLogger(__name__)

PORTS_TRIED = 20
CLOSING_S = 2


class Server:
    """Listens from construction on. `close` ends running replies and joins the thread."""

    def __init__(self, backend: Backend, options: ServerOptions, activity: Activity | None = None) -> None:
        """Raises BadRequest if the address is not available, or would be open to others without a key."""
        if not options.is_local and not options.key:
            raise BadRequest(
                "The server was not started.",
                "An address that other computers can reach needs an API key.",
                "Set a key, or use 127.0.0.1.",
            )
        self.options = options
        self.activity = activity or Activity()
        self._socket = _bind(options)
        self.port = int(self._socket.getsockname()[1])
        self._service = Service(backend, options, self.activity)
        self._uvicorn = uvicorn.Server(self._config(make_app(self._service)))
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="server")
        self._thread.start()

    @property
    def address(self) -> str:
        """The base address for clients on this computer or, if bound to all interfaces, on its network."""
        return f"http://{_shown(self.options.host)}:{self.port}/v1"

    def wait(self) -> None:
        """Wait until the server has ended."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # without a timeout, Ctrl+C would not be noticed on Windows

    def close(self) -> None:
        self._uvicorn.should_exit = True
        with suppress(RuntimeError):  # the server has already ended
            self._loop.call_soon_threadsafe(self._service.close)
        self._thread.join()

    def _config(self, app: object) -> uvicorn.Config:
        limits = self.options.limits
        return uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=with_header_limit(limits.headers_s),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=CLOSING_S,
            h11_max_incomplete_event_size=limits.headers,
        )

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        await self._uvicorn.serve([self._socket])
        for client in list(self._uvicorn.server_state.connections):
            client.transport.abort()  # its request was not complete within CLOSING_S


def _bind(options: ServerOptions) -> socket.socket:
    """Return a listening socket. Raises BadRequest."""
    ports = [options.port] if options.port is not None else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    problem: OSError | None = None
    for port in ports:
        try:
            return _listen(options.host, port)
        except OSError as error:
            problem = error
    reason = problem.strerror if problem and problem.strerror else str(problem)
    raise BadRequest(
        sentence("The address {}:{} cannot be used.", options.host, ports[0]), f"{reason}.", "Choose another port."
    )


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError:
        found.close()
        raise
    return found


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        host = lan_address()
    return f"[{host}]" if ":" in host else host


def lan_address() -> str:
    """Return this computer's address in its network, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation; UDP connect sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
