"""The keys of remote servers: in the system's keyring by address, or in an environment variable for the command
line."""

from __future__ import annotations

import os

from core.keyring import Keyring, keep_secret, kept_secret

SERVICE = "HeteGen remote server"
VARIABLE = "HETEGEN_REMOTE_KEY"


def key_of(keyring: Keyring | None, url: str) -> str:
    """Return the key for the server at `url`, "" if none is known."""
    if said := os.environ.get(VARIABLE, "").strip():
        return said
    return "" if keyring is None else kept_secret(keyring, SERVICE, url)


def keep_key(keyring: Keyring, url: str, key: str) -> bool:
    """Store the key for `url`, or remove it if it is ""; return whether that worked."""
    return keep_secret(keyring, SERVICE, url, key)
