"""The keys of remote servers: in the system's keyring, by address; for the command line in an environment variable."""

from __future__ import annotations

import os

from core.keyring import Keyring, keep_secret, kept_secret

SERVICE = "HeteGen remote server"
VARIABLE = "HETEGEN_REMOTE_KEY"


def key_of(keyring: Keyring | None, url: str) -> str:
    """The key for the server at `url`, "" if none is known."""
    if said := os.environ.get(VARIABLE, "").strip():
        return said
    return "" if keyring is None else kept_secret(keyring, SERVICE, url)


def keep_key(keyring: Keyring, url: str, key: str) -> bool:
    """Keep the key for `url`, or forget it where it is ""; whether that worked."""
    return keep_secret(keyring, SERVICE, url, key)
