"""A plain HTTP client for the server's tests: exactly what goes over the wire."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

from core.server.server import Server

QUESTION = [{"role": "user", "content": "What is HeteGen?"}]
# The guide's greedy answer is long enough to be interrupted.
LONG = {"messages": QUESTION, "max_tokens": 1500, "temperature": 0, "logit_bias": {"4": -100}}


def ask(
    server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, Any]:
    """Return status and JSON (or text) of a request. `body`: bytes verbatim, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, content, headers or {})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def events(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    """Return the data of every server-sent event; strings if they are not JSON."""
    status, text = ask(server, path, body | {"stream": True})
    assert status == 200, text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


def open_request(server: Server, path: str, body: dict[str, Any]) -> socket.socket:
    """Open a connection, send a request, and leave the response unread."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Return whether `condition` becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
