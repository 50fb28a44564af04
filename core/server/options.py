"""A server's options and limits: records only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

DEFAULT_PORT = 9931
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Limits:
    """Limits for clients; sizes in bytes, times in seconds.

    `refusal_s`: a stream refused within this time gets an HTTP error status; later errors appear in the stream.
    """

    body: int = 16 << 20
    headers: int = 64 << 10
    headers_s: float = 20.0
    body_s: float = 60.0
    send_s: float = 60.0
    reply_s: float = 3600.0
    ping_s: float = 10.0
    refusal_s: float = 2.0
    waiting: int = 256
    connections: int = 1024


@dataclass(frozen=True)
class ServerOptions:
    """`port` None: the first free one from DEFAULT_PORT. `origins`: allowed to call from a browser; `hosts`: further
    names of this computer. An address beyond this computer requires a `key`."""

    host: str = LOOPBACK
    port: int | None = None
    key: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    limits: Limits = Limits()

    @property
    def is_local(self) -> bool:
        """Whether only programs on this computer can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address always means this computer."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)
