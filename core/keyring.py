"""Secrets in the operating system's keyring, by service and name. A system without one, or a locked one, keeps none."""

from __future__ import annotations

from typing import Protocol


class Keyring(Protocol):
    """The part of the `keyring` library that is used."""

    def get_password(self, service: str, name: str) -> str | None:
        """The secret of a name; None without one."""

    def set_password(self, service: str, name: str, password: str) -> None:
        """Keep a secret."""

    def delete_password(self, service: str, name: str) -> None:
        """Forget a secret."""


def system_keyring() -> Keyring:
    """The operating system's keyring. Imported late: it looks for its backends when imported."""
    import keyring

    return keyring


def kept_secret(keyring: Keyring, service: str, name: str) -> str:
    """The secret of a name, "" without one."""
    from keyring.errors import KeyringError

    try:
        return keyring.get_password(service, name) or ""
    except KeyringError:
        return ""


def keep_secret(keyring: Keyring, service: str, name: str, secret: str) -> bool:
    """Keep a secret, or forget it where it is ""; whether that worked."""
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
