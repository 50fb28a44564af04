"""The API key of a server that other computers can reach: made once, kept in the system's keyring."""

from __future__ import annotations

import secrets

from core.hub.token import Keyring

SERVICE = "HeteGen server key"
NAME = "server"


def new_key() -> str:
    """A key that cannot be guessed."""
    return f"hg-{secrets.token_urlsafe(32)}"


def kept_key(keyring: Keyring) -> str:
    """The key in the keyring, made now if there is none; one that cannot be kept holds until the program ends."""
    from keyring.errors import KeyringError

    try:
        if kept := keyring.get_password(SERVICE, NAME):
            return kept
        key = new_key()
        keyring.set_password(SERVICE, NAME, key)
    except KeyringError:
        return new_key()
    return key


def replace_key(keyring: Keyring) -> str:
    """Make a new key and keep it; the old one is refused from the server's next start on."""
    from keyring.errors import KeyringError

    key = new_key()
    try:
        keyring.set_password(SERVICE, NAME, key)
    except KeyringError:
        return key
    return key
