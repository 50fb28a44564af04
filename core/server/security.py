"""Access control, before anything else is parsed: the requested host, the origin of the calling page, the key.

A browser can be led to this server by a host name that resolves to it (DNS rebinding), and sends any page's requests.
Therefore only known names of this computer are answered, and pages only if their origin was allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server.errors import ApiError, error_response
from core.server.options import ServerOptions, is_loopback

OPEN_PATHS = frozenset({"/health"})
METHODS = "GET, POST, OPTIONS"
CORS_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"


def host_of(header: str) -> str:
    """Return the name or address in a Host header, without port and brackets, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") > 1:  # an IPv6 address without brackets
        return text
    return text.partition(":")[0].rstrip(".")


def own_names() -> frozenset[str]:
    """Return this computer's names and the addresses of its network interfaces."""
    name = socket.gethostname().lower()
    addresses = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
    return frozenset({name, f"{name}.local", *(address.lower().partition("%")[0] for address in addresses)})


class AccessRules:
    """The access rules of one server."""

    def __init__(self, options: ServerOptions, names: Callable[[], frozenset[str]] = own_names) -> None:
        self._options = options
        self._names = names
        self._digest = _digest(options.key) if options.key else b""

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that must not be answered."""
        if not self.knows_host(host_of(headers.get("host", ""))):
            raise ApiError(403, "This server does not answer to that host name.", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self.allows_origin(origin, headers.get("host", "")):
            raise ApiError(
                403,
                "Web pages may not use this server unless their origin was named with --allow-origin.",
                code="origin_not_allowed",
            )
        if method != "OPTIONS" and path not in OPEN_PATHS and not self.has_key(headers):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def knows_host(self, host: str) -> bool:
        """Return whether `host` is a name under which this server answers."""
        if is_loopback(host) or host in map(str.lower, self._options.hosts):
            return True
        if self._options.is_local or not host:
            return False
        return host == self._options.host.lower() or _plain(host) in self._names()

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of `origin` may call: an allowed one, or one of this server."""
        return origin in self._options.origins or origin == f"http://{host}"

    def has_key(self, headers: Headers) -> bool:
        """Return whether the key is right (compared in constant time), or no key is required."""
        if not self._digest:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(_digest(given), self._digest)

    def named(self, origin: str | None) -> bool:
        """Return whether the user has allowed this origin explicitly."""
        return origin is not None and origin in self._options.origins


class Guard:
    """The outermost ASGI application: applies the access rules, and adds CORS headers for allowed origins."""

    def __init__(self, app: ASGIApp, access: AccessRules) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._access.check(scope["method"], scope["path"], headers)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        if self._access.named(origin := headers.get("origin")):
            send = _with_cors(send, str(origin))
        await self._app(scope, receive, send)


def _with_cors(send: Send, origin: str) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-methods"] = METHODS
            headers["access-control-allow-headers"] = CORS_HEADERS
            headers.add_vary_header("origin")
        await send(message)

    return with_headers


def _plain(host: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, otherwise `host`."""
    try:
        mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
