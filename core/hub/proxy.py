"""Opens connections, directly or through the proxy of the system or the environment."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from core.errors import NetworkError
from core.sentence import sentence

DEFAULT_PORTS = {"http": 80, "https": 443}


def connect(
    target: SplitResult, proxy: str, timeout_s: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    """Return a connection to `target`, opened by its first request. `proxy` is an address or "". Raises
    NetworkError."""
    host, port = target.hostname or "", target.port or DEFAULT_PORTS[target.scheme]
    if not proxy:
        return _to(target.scheme, host, port, timeout_s, context)
    via, via_port = _proxy(proxy)
    connection = _to(target.scheme, via.hostname or "", via_port, timeout_s, context)
    if target.scheme == "https":
        connection.set_tunnel(host, port, headers=credentials(proxy))
    return connection


def proxy_for(target: SplitResult) -> str:
    """Return the address of the proxy for requests to `target`, "" = none: no proxy reaches this computer's loopback
    addresses."""
    host = target.hostname or ""
    return "" if is_own(host) or proxy_bypass(host) else chosen_proxy(target.scheme, getproxies())


def is_own(host: str) -> bool:
    """Return whether a host is this computer's by a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def asked_of(target: SplitResult, proxy: str) -> tuple[str, dict[str, str]]:
    """Return the address in a request's first line, and headers for the proxy: a plain http request names the whole
    address to it."""
    if proxy and target.scheme == "http":
        return target._replace(fragment="").geturl(), credentials(proxy)
    return target._replace(scheme="", netloc="", fragment="").geturl() or "/", {}


def chosen_proxy(scheme: str, found: Mapping[str, str]) -> str:
    """Return the system's proxy for a scheme, or its proxy for all schemes."""
    return found.get(scheme) or found.get("all", "")


def _proxy(text: str) -> tuple[SplitResult, int]:
    """Return a proxy's address and port. Raises NetworkError."""
    try:
        via = urlsplit(text if "://" in text else f"http://{text}")
        port = via.port
    except ValueError as error:
        raise _no_proxy(text, "Its address cannot be read.") from error
    if via.scheme not in DEFAULT_PORTS or not via.hostname:
        raise _no_proxy(via.hostname or text, sentence("Its kind ({}) is not spoken here.", via.scheme))
    return via, port or DEFAULT_PORTS[via.scheme]


def _no_proxy(name: str, why: str) -> NetworkError:
    return NetworkError(sentence("The proxy {} cannot be used.", name), why, "Set HTTPS_PROXY to an http:// address.")


def credentials(proxy: str) -> dict[str, str]:
    """Return the Proxy-Authorization header for the name and password in a proxy's address, if any."""
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
