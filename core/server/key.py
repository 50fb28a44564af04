"""The API key of a server that other computers can reach: made once, kept in the system's keyring."""

from __future__ import annotations

import secrets

from core.keyring import Keyring, keep_secret, kept_secret

SERVICE = "HeteGen server key"
NAME = "server"


def new_key() -> str:
    """A key that cannot be guessed."""
    return f"hg-{secrets.token_urlsafe(32)}"


def kept_key(keyring: Keyring) -> str:
    """The key in the keyring, made now if there is none; one that cannot be kept holds until the program ends."""
    return kept_secret(keyring, SERVICE, NAME) or replace_key(keyring)


def replace_key(keyring: Keyring) -> str:
    """Make a new key and keep it; the old one is refused from the server's next start on."""
    key = new_key()
    keep_secret(keyring, SERVICE, NAME, key)
    return key
