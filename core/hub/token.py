"""Finds and stores the Hub's token: environment, system keyring, Hugging Face's own file.

A token belongs to one host. Those of the environment and the file are Hugging Face's and are not sent to a mirror,
unless HETEGEN_TOKEN_HOST names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import AccessDenied, HeteGenError
from core.hub.environment import PUBLIC_HOSTS, HubEnvironment, parts_of
from core.keyring import Keyring, keep_secret, kept_secret

SERVICE = "HeteGen Hugging Face token"
NOT_KEPT = HeteGenError(
    "The token was not kept.",
    "This system has no keyring that works.",
    "It is used until the program ends; set HF_TOKEN to keep it.",
)


TokenSource = Literal["environment", "keyring", "file", "none"]


@dataclass(frozen=True)
class AuthToken:
    """A token and its source; its value is kept out of `repr`, so that it does not appear in logs."""

    value: str
    source: TokenSource

    def __repr__(self) -> str:
        return f"Token({self.source})"


NO_TOKEN = AuthToken("", "none")


def find_token(environment: HubEnvironment, keyring: Keyring) -> AuthToken:
    """Return the token for the endpoint's host, NO_TOKEN if there is none: HF_TOKEN, keyring, Hugging Face's file."""
    may_go = environment.implicit_token and is_meant(environment)
    if may_go and environment.token:
        return AuthToken(environment.token, "environment")
    if kept := kept_secret(keyring, SERVICE, environment.host):
        return AuthToken(kept, "keyring")
    if may_go and (written := _from_file(environment)):
        return AuthToken(written, "file")
    return NO_TOKEN


def check_token(value: str) -> None:
    """Raise AccessDenied for a token that cannot be sent in a header."""
    if not (value.isascii() and all(sign.isprintable() and sign != " " for sign in value)):
        raise AccessDenied(
            "The access token cannot be used.",
            "It has a line break or another sign that no token has.",
            "Copy it anew from your account's settings at Hugging Face.",
        )


def is_meant(environment: HubEnvironment) -> bool:
    """Return whether Hugging Face's token may be sent to the endpoint: theirs, this computer, or the named host."""
    name = parts_of(environment.endpoint).hostname or ""
    theirs = any(name == own or name.endswith("." + own) for own in PUBLIC_HOSTS)
    is_theirs = theirs and environment.endpoint.startswith("https:")
    is_local = name in ("localhost", "::1") or name.startswith("127.")
    return is_theirs or is_local or (bool(environment.token_host) and environment.token_host == environment.host)


def keep_token(environment: HubEnvironment, value: str, keyring: Keyring) -> None:
    """Store a token for the endpoint's host in the keyring. Raises HeteGenError if there is no working keyring."""
    if not keep_secret(keyring, SERVICE, environment.host, value.strip()):
        raise NOT_KEPT


def forget_token(environment: HubEnvironment, keyring: Keyring) -> None:
    """Remove the stored token; a token of the environment or of the file stays."""
    keep_secret(keyring, SERVICE, environment.host, "")


def _from_file(environment: HubEnvironment) -> str:
    try:
        return environment.token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
