"""Secrets in the operating system's keyring, by service and name. Without a usable keyring, nothing is stored."""

from __future__ import annotations

from typing import Protocol


class Keyring(Protocol):
    """The part of the `keyring` library that is used."""

    def get_password(self, service: str, name: str) -> str | None:
        """Return a secret; None if there is none."""

    def set_password(self, service: str, name: str, password: str) -> None:
        """Store a secret."""

    def delete_password(self, service: str, name: str) -> None:
        """Delete a secret."""


def system_keyring() -> Keyring:
    """Return the operating system's keyring. Imported late, because the import searches for backends."""
    import keyring

    return keyring


def kept_secret(keyring: Keyring, service: str, name: str) -> str:
    """Return a secret, "" if there is none."""
    from keyring.errors import KeyringError

    try:
        return keyring.get_password(service, name) or ""
    except KeyringError:
        return ""


def keep_secret(keyring: Keyring, service: str, name: str, secret: str) -> bool:
    """Store a secret, or delete it if it is ""; return whether that worked."""
    from keyring.errors import KeyringError, PasswordDeleteError

    try:
        if secret:
            keyring.set_password(service, name, secret)
        else:
            keyring.delete_password(service, name)
    except PasswordDeleteError:
        return True
    except KeyringError:
        return False
    return True
