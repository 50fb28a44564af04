"""Finds which step of reaching a server fails: name, connection, certificate, key, path, models."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from core.errors import HeteGenError, KeyRefused, ModelNotFound
from core.remote.connection import CONNECT_S, Connection
from core.remote.endpoint import base_url
from core.remote.engine import models_of

Step = Literal["address", "name", "connection", "certificate", "key", "path", "models"]


@dataclass(frozen=True)
class Outcome:
    """The result of one step: `error` says why it failed; `models` is set by the last step."""

    step: Step
    error: HeteGenError | None = None
    models: tuple[str, ...] = ()


def check(address: str, key: str = "") -> Iterator[Outcome]:
    """Yield the steps in order, up to the first that fails. Failures are reported, never raised."""
    try:
        url = base_url(address)
    except HeteGenError as error:
        yield Outcome("address", error)
        return
    yield Outcome("address")
    connection, parts = Connection(url, key), urlsplit(url)
    for step, attempt in (("name", _look_up), ("connection", _connect), ("certificate", _greet)):
        try:
            attempt(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), parts.scheme)
        except OSError as error:
            yield Outcome(step, connection.lost(error))  # type: ignore[arg-type]
            return
        yield Outcome(step)  # type: ignore[arg-type]
    yield from _ask(connection)


def _ask(connection: Connection) -> Iterator[Outcome]:
    try:
        found = tuple(one["id"] for one in models_of(connection.get("/models")))
    except KeyRefused as error:
        yield Outcome("key", error)
        return
    except ModelNotFound as error:
        yield Outcome("key")
        yield Outcome("path", error)
        return
    except HeteGenError as error:
        yield Outcome("path", error)
        return
    yield Outcome("key")
    yield Outcome("path")
    yield Outcome("models", None, found)


def _look_up(host: str, port: int, scheme: str) -> None:
    socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connect(host: str, port: int, scheme: str) -> None:
    socket.create_connection((host, port), CONNECT_S).close()


def _greet(host: str, port: int, scheme: str) -> None:
    if scheme == "https":
        with socket.create_connection((host, port), CONNECT_S) as line:
            ssl.create_default_context().wrap_socket(line, server_hostname=host).close()
