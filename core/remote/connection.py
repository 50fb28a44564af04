"""HTTP to one server: JSON requests, and event streams that can be stopped at any moment."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from core.errors import BadRequest, HeteGenError, KeyRefused, ModelNotFound, NetworkError
from core.events import Stop, never
from core.hub.line import hang_up
from core.hub.proxy import asked_of, connect, proxy_for
from core.sentence import sentence

LOOK_EVERY_S = 0.05
MOST_BODY, MOST_LINE = 16 << 20, 4 << 20
CONNECT_S, SILENCE_S = 5.0, 900.0
"""The read timeout: a server may be silent for minutes while it reads a long prompt."""
DONE = "[DONE]"


class Stopped(Exception):
    """A request was ended by its `stop`."""


class Connection:
    """Requests to the server at `url`, one at a time. `key` is sent only to this server, and never shown."""

    def __init__(self, url: str, key: str = "", *, context: ssl.SSLContext | None = None) -> None:
        self.url = url
        self.host = urlsplit(url).netloc
        self._key = key
        self._context = context

    def get(self, path: str, stop: Stop = never) -> Any:
        """Return the JSON at `path`. Raises NetworkError, KeyRefused, ModelNotFound, Stopped."""
        with self._answer("GET", path, None, stop, CONNECT_S) as answer:
            return self._json(answer.read(MOST_BODY))

    def events(self, path: str, body: dict[str, Any], stop: Stop) -> Iterator[dict[str, Any]]:
        """Post `body` and yield the server-sent events as JSON. A server that does not stream gives a single one.

        Raises Stopped as soon as `stop` returns True, NetworkError, KeyRefused, ModelNotFound, BadRequest.
        """
        with self._answer("POST", path, body, stop, SILENCE_S) as answer:
            if "event-stream" not in answer.headers.get("Content-Type", ""):
                yield self._json(answer.read(MOST_BODY))
                return
            for data in _event_data(answer):
                if data == DONE:
                    return
                yield self._json(data)
        # The stream ended without an end mark: a lost connection, unless a stop caused it.
        raise Stopped if stop() else self.lost()

    @contextmanager
    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, stop: Stop, timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        target = urlsplit(f"{self.url}{path}")
        proxy = proxy_for(target)
        address, for_proxy = asked_of(target, proxy)
        connection = connect(target, proxy, CONNECT_S, self._context)
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            with _aborted_on(stop, connection.sock):
                sent = None if body is None else json.dumps(body)
                connection.request(method, address, sent, {**self._headers(), **for_proxy})
                with connection.getresponse() as answer:
                    if answer.status != http.client.OK:
                        raise self.refusal(answer.status, answer.read(MOST_BODY))
                    yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Stopped if stop() else self.lost(error) from error
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _json(self, text: bytes | str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self.strange() from error

    def strange(self) -> NetworkError:
        """Return the error for an answer that no model server would send."""
        return NetworkError(
            sentence("{} was not understood.", self.host),
            "Its answer is not what a model server sends.",
            "Check the address: it often ends in /v1.",
        )

    def lost(self, error: Exception | None = None) -> HeteGenError:
        """Return the error for a connection that failed or broke."""
        if isinstance(error, ssl.SSLError):
            return NetworkError(
                sentence("{} could not be trusted.", self.host), "Its certificate is not valid.", "Check the address."
            )
        if isinstance(error, socket.gaierror):
            return NetworkError(
                sentence("No computer named {} was found.", urlsplit(self.url).hostname), "", "Check the name."
            )
        if isinstance(error, ConnectionRefusedError):
            return NetworkError(
                sentence("Nothing answers at {}.", self.host), "", "Start the server there, or check the port."
            )
        return NetworkError(sentence("The connection to {} was lost.", self.host), "", "Try again when it is there.")

    def refusal(self, status: int, body: bytes) -> HeteGenError:
        """Return the error for an HTTP error status; `body` is the server's explanation."""
        said = _message(body)
        if status in (401, 403):
            return KeyRefused(
                sentence("{} refuses the key.", self.host), said, "Enter the key that it was started with."
            )
        if status == 404:
            return ModelNotFound(
                sentence("{} does not know this.", self.host),
                said,
                "Check the model's name and the address; it often ends in /v1.",
            )
        if status < 500:
            return BadRequest(
                sentence("{} refuses the request.", self.host), said, "Change the message or the settings."
            )
        return NetworkError(sentence("{} failed.", self.host), said, "Look at its log, and try again.")


@contextmanager
def _aborted_on(stop: Stop, line: socket.socket) -> Iterator[None]:
    """Unblock a read of the calling thread as soon as `stop` returns True."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_EVERY_S):
            if stop():
                hang_up(line)
                return

    watcher = threading.Thread(target=watch, name="remote-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _event_data(answer: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the data of each event; comments (keep-alives) and other fields are skipped."""
    parts: list[str] = []
    while line := answer.readline(MOST_LINE):
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if text.startswith("data:"):
            parts.append(text[5:].removeprefix(" "))
        elif not text and parts:
            yield "\n".join(parts)
            parts = []
    if parts:
        yield "\n".join(parts)


def _message(body: bytes) -> str:
    """Return the server's explanation of an error as at most one sentence; "" if it cannot be parsed."""
    try:
        error = json.loads(body)
    except ValueError:
        return ""
    for name in ("error", "detail", "message"):
        if isinstance(error, dict) and name in error:
            error = error[name]
    if isinstance(error, dict):
        error = error.get("message", "")
    said = " ".join(error.split())[:300] if isinstance(error, str) else ""
    return f"{said}." if said and said[-1] not in ".!?…" else said
