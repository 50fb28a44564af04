"""HTTP to the Hub: redirects, token scope, timeouts, connection reuse.

The token is sent only to the endpoint's own origin, wherever redirects lead. Failures that may pass are `Transient`,
for `retry` to try again; all others are errors of `core.errors`.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from typing import Any
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from core.errors import NetworkError
from core.events import Stop, never
from core.hub.environment import check_endpoint
from core.hub.http_errors import broken_line, refusal, retry_after
from core.hub.line import hang_up
from core.hub.proxy import DEFAULT_PORTS, asked_of, connect, proxy_for
from core.hub.retry import Retries, Transient, retry
from core.hub.token import check_token
from core.sentence import sentence

REDIRECTS = frozenset({301, 302, 303, 307, 308})
# 416 is the answer to a range request for an empty file.
ANSWERS = (200, 206, 416)
MAX_REDIRECTS = 5
MAX_BODY_BYTES = 64 << 20
BLOCK_BYTES = 1 << 18
NEXT_PAGE = 'rel="next"'
USER_AGENT = "hetegen/0.1"
Origin = tuple[str, str, int]


class HttpResponse:
    """A response being read by one thread; any thread may `abort` it. `first`: the headers of the endpoint's
    response."""

    def __init__(self, url: str, connection: http.client.HTTPConnection, raw: http.client.HTTPResponse, line: Any):
        self.url = url
        self.status = raw.status
        self.headers: Message = raw.headers
        self.first: Message = raw.headers
        self.connection = connection
        self._raw = raw
        self._line: socket.socket = line

    def read1(self, most: int) -> bytes:
        """Return the next bytes, at most `most`; empty at the end. Raises Transient if the connection breaks."""
        try:
            return self._raw.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise broken_line(error, self.url) from error

    def read(self, most: int) -> bytes:
        """Return the whole body, or its first `most` bytes. Raises Transient if it is cut off."""
        parts, left = [], most
        while left and (part := self.read1(min(left, BLOCK_BYTES))):
            parts.append(part)
            left -= len(part)
        if left and self._raw.length:
            raise broken_line(ConnectionResetError(), self.url)
        return b"".join(parts)

    def abort(self) -> None:
        """Unblock a read in another thread at once."""
        hang_up(self._line)

    def close(self) -> bool:
        """Finish this response; return whether its connection can carry another request."""
        whole = self._raw.length == 0 or (self._raw.chunked and self._raw.isclosed())
        self._raw.close()
        return bool(whole) and not self._raw.will_close and self.connection.sock is not None


class Client:
    """Requests to one endpoint, from any thread. `timeout_s` bounds connecting and every single read."""

    def __init__(
        self,
        endpoint: str,
        token: str = "",
        *,
        offline: bool = False,
        timeout_s: float = 15.0,
        retries: Retries | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        check_endpoint(endpoint)
        check_token(token)
        self.endpoint = endpoint.rstrip("/")
        self.retries = retries or Retries(limit=3)
        self._token = token
        self._offline = offline
        self._timeout_s = timeout_s
        self._context = context
        self._home = _origin(urlsplit(self.endpoint))
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._closed = False
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The endpoint's host, for messages."""
        return urlsplit(self.endpoint).netloc

    def url(self, path: str, parameters: Mapping[str, str | list[str]] | None = None) -> str:
        """Return the address of `path` (already quoted) on the endpoint; list values become repeated parameters."""
        query = "?" + urlencode(parameters, doseq=True) if parameters else ""
        return f"{self.endpoint}/{path}{query}"

    def get_json(self, url: str, subject: str, stop: Stop = never) -> tuple[Any, str]:
        """Return the JSON at `url` and the address of its next page ("" = none), with retries.

        Raises NetworkError, or the error for a refused request; both name `subject`.
        """

        def once() -> tuple[bytes, str]:
            with self.open(url, subject) as reply:
                return reply.read(MAX_BODY_BYTES), _next_page(reply)

        body, following = retry(once, self.retries, stop)
        if following and _origin(urlsplit(following)) != self._home:
            raise NetworkError(sentence("{} was not understood.", self.host), "Its next page is on another host.", "")
        try:
            return json.loads(body), following
        except ValueError as error:
            raise NetworkError(
                sentence("{} was not understood.", self.host),
                "The answer is not what the Hub sends; a sign-in page of the network may be in between.",
                "Open a web page in a browser, then try again.",
            ) from error

    def get_bytes(self, url: str, subject: str, *, start: int = 0, size: int = MAX_BODY_BYTES) -> bytes:
        """Return at most `size` bytes of a file from byte `start`, with retries."""
        asked = {"Range": f"bytes={start}-{start + size - 1}"}

        def once() -> bytes:
            with self.open(url, subject, asked) as reply:
                if reply.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return b""
                # A server without range support sends the whole file: skip what lies before `start`.
                before = start if reply.status == http.client.OK else 0
                return reply.read(before + size)[before:]

        return retry(once, self.retries)

    @contextmanager
    def open(self, url: str, subject: str, headers: Mapping[str, str] | None = None) -> Iterator[HttpResponse]:
        """Send one GET, following redirects, without retries; yield a 200, 206 or 416 response. Raises Transient,
        HeteGenError."""
        if self._offline:
            raise NetworkError("The Hub was not asked.", "Offline mode is on.", "Unset HF_HUB_OFFLINE to go online.")
        reply = self._follow(url, headers or {})
        try:
            if reply.status not in ANSWERS:
                self._refuse(reply, subject)
            yield reply
        finally:
            self._keep(reply)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections, and keep none from now on."""
        with self._lock:
            self._closed = True
            connections = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in connections:
            connection.close()

    def _refuse(self, reply: HttpResponse, subject: str) -> None:
        error = refusal(reply.status, reply.headers, self.endpoint, subject, has_token=bool(self._token))
        # A file host answers 403 when its signed address has expired; the endpoint then issues a new one.
        expired = reply.status in (401, 403) and _origin(urlsplit(reply.url)) != self._home
        if expired or reply.status in (408, 429) or reply.status >= 500:
            raise Transient(error, retry_after(reply.headers))
        raise error

    def _follow(self, url: str, headers: Mapping[str, str]) -> HttpResponse:
        first: Message | None = None
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._get(url, headers)
            first = reply.first = reply.headers if first is None else first
            location = reply.headers.get("Location", "")
            if reply.status not in REDIRECTS or not location:
                return reply
            reply.read(BLOCK_BYTES)
            self._keep(reply)
            url = _redirected(url, location)
        raise NetworkError(sentence("{} redirects without end.", self.host), "", "Try again later.")

    def _get(self, url: str, headers: Mapping[str, str]) -> HttpResponse:
        target = urlsplit(url)
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if self._token and _origin(target) == self._home:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            return self._exchange(url, target, sent)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise broken_line(error, url) from error

    def _exchange(self, url: str, target: SplitResult, headers: dict[str, str]) -> HttpResponse:
        proxy = proxy_for(target)
        address, for_proxy = asked_of(target, proxy)
        headers = {**headers, **for_proxy}
        with self._lock:
            kept = self._idle.get(_origin(target))
            reused = kept.pop() if kept else None
        if reused is not None:
            try:
                return _send(url, reused, address, headers)
            except (OSError, http.client.HTTPException):
                # The server closed an idle connection, which is normal: reconnect.
                reused.close()
        return _send(url, connect(target, proxy, self._timeout_s, self._context), address, headers)

    def _keep(self, reply: HttpResponse) -> None:
        reusable = reply.close()
        with self._lock:
            if reusable and not self._closed:
                self._idle.setdefault(_origin(urlsplit(reply.url)), []).append(reply.connection)
                return
        reply.connection.close()


def _send(url: str, connection: http.client.HTTPConnection, address: str, headers: Mapping[str, str]) -> HttpResponse:
    try:
        connection.request("GET", address, headers=dict(headers))
        # http.client drops the socket of a response that ends with the connection; `abort` needs it.
        line = connection.sock
        return HttpResponse(url, connection, connection.getresponse(), line)
    except BaseException:
        connection.close()
        raise


def _origin(parts: SplitResult) -> Origin:
    return parts.scheme, (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS.get(parts.scheme, 0)


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme != "https" and not (scheme == "http" and urlsplit(url).scheme == "http"):
        raise NetworkError(
            sentence("{} redirects to an address that is not safe.", urlsplit(url).netloc), "", "Try again later."
        )
    return target


def _next_page(reply: HttpResponse) -> str:
    for link in reply.headers.get("Link", "").split(","):
        address, _, relation = link.partition(";")
        if NEXT_PAGE in relation:
            return urljoin(reply.url, address.strip().strip("<>"))
    return ""
