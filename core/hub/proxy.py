"""Opening a connection: straight, or through the proxy that the system or the environment names."""

from __future__ import annotations

import base64
import http.client
import ssl
from urllib.parse import SplitResult, unquote, urlsplit

from core.errors import NetworkError
from core.sentence import sentence

DEFAULT_PORTS = {"http": 80, "https": 443}


def connect(
    target: SplitResult, proxy: str, timeout_s: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    """A connection, opened by its first request, to `target`. `proxy` is an address or "". Raises NetworkError."""
    host, port = target.hostname or "", target.port or DEFAULT_PORTS[target.scheme]
    if not proxy:
        return _to(target.scheme, host, port, timeout_s, context)
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if via.scheme not in DEFAULT_PORTS or not via.hostname:
        raise NetworkError(
            sentence("The proxy {} cannot be used.", via.hostname or proxy),
            sentence("Its kind ({}) is not spoken here.", via.scheme),
            "Set HTTPS_PROXY to an http:// address.",
        )
    # A plain http request through a proxy names the whole address; an https one goes through a tunnel.
    connection = _to(target.scheme, via.hostname, via.port or DEFAULT_PORTS[via.scheme], timeout_s, context)
    if target.scheme == "https":
        connection.set_tunnel(host, port, headers=credentials(proxy))
    return connection


def credentials(proxy: str) -> dict[str, str]:
    """The Proxy-Authorization header for the name and password in a proxy's address, if it has any."""
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not via.username:
        return {}
    pair = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode()}


def _to(
    scheme: str, host: str, port: int, timeout_s: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout_s)
