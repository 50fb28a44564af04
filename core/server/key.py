"""The API key of a server that other computers can reach: generated once, stored in the system's keyring."""

from __future__ import annotations

import secrets

from core.keyring import Keyring, keep_secret, kept_secret

SERVICE = "HeteGen server key"
NAME = "server"


def new_key() -> str:
    """Return a random key."""
    return f"hg-{secrets.token_urlsafe(32)}"


def kept_key(keyring: Keyring) -> str:
    """Return the key in the keyring, generated if there is none; without a keyring it lasts until the program ends."""
    return kept_secret(keyring, SERVICE, NAME) or replace_key(keyring)


def replace_key(keyring: Keyring) -> str:
    """Generate and store a new key; the old one is refused from the server's next start on."""
    key = new_key()
    keep_secret(keyring, SERVICE, NAME, key)
    return key
