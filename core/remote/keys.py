"""The keys of remote servers: in the system's keyring, by address; for the command line in an environment variable."""

from __future__ import annotations

import os

from core.hub.token import Keyring

SERVICE = "HeteGen remote server"
VARIABLE = "HETEGEN_REMOTE_KEY"


def key_of(keyring: Keyring | None, url: str) -> str:
    """The key for the server at `url`, "" if none is known."""
    from keyring.errors import KeyringError

    if said := os.environ.get(VARIABLE, "").strip():
        return said
    if keyring is None:
        return ""
    try:
        return keyring.get_password(SERVICE, url) or ""
    except KeyringError:
        return ""


def keep_key(keyring: Keyring, url: str, key: str) -> bool:
    """Keep the key for `url`, or forget it where it is ""; whether that worked."""
    from keyring.errors import KeyringError, PasswordDeleteError

    try:
        if key:
            keyring.set_password(SERVICE, url, key)
        else:
            keyring.delete_password(SERVICE, url)
    except PasswordDeleteError:
        return True
    except KeyringError:
        return False
    return True
