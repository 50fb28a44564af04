"""Where the Hub's token comes from and is kept: the environment, the system's keyring, Hugging Face's own file.

A token belongs to one host. Those of the environment and of the file are Hugging Face's and are not shown to a
mirror, unless HETEGEN_TOKEN_HOST names it.
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
    """A token and where it was found; its value is kept out of its text, so that no log shows it."""

    value: str
    source: TokenSource

    def __repr__(self) -> str:
        return f"Token({self.source})"


NO_TOKEN = AuthToken("", "none")


def find_token(environment: HubEnvironment, keyring: Keyring) -> AuthToken:
    """The token for the endpoint's host, NO_TOKEN if there is none: HF_TOKEN, the keyring, Hugging Face's file."""
    may_go = environment.implicit_token and is_meant(environment)
    if may_go and environment.token:
        return AuthToken(environment.token, "environment")
    if kept := kept_secret(keyring, SERVICE, environment.host):
        return AuthToken(kept, "keyring")
    if may_go and (written := _from_file(environment)):
        return AuthToken(written, "file")
    return NO_TOKEN


def check_token(value: str) -> None:
    """Raise AccessDenied for a token that no request can carry."""
    if not (value.isascii() and all(sign.isprintable() and sign != " " for sign in value)):
        raise AccessDenied(
            "The access token cannot be used.",
            "It has a line break or another sign that no token has.",
            "Copy it anew from your account's settings at Hugging Face.",
        )


def is_meant(environment: HubEnvironment) -> bool:
    """Whether Hugging Face's token may go to the endpoint: theirs, this computer, or the host that is named."""
    name = parts_of(environment.endpoint).hostname or ""
    theirs = any(name == own or name.endswith("." + own) for own in PUBLIC_HOSTS)
    is_theirs = theirs and environment.endpoint.startswith("https:")
    is_local = name in ("localhost", "::1") or name.startswith("127.")
    return is_theirs or is_local or (bool(environment.token_host) and environment.token_host == environment.host)


def keep_token(environment: HubEnvironment, value: str, keyring: Keyring) -> None:
    """Keep a token for the endpoint's host in the keyring. Raises HeteGenError when there is none that works."""
    if not keep_secret(keyring, SERVICE, environment.host, value.strip()):
        raise NOT_KEPT


def forget_token(environment: HubEnvironment, keyring: Keyring) -> None:
    """Remove the kept token; a token of the environment or of the file stays."""
    keep_secret(keyring, SERVICE, environment.host, "")


def _from_file(environment: HubEnvironment) -> str:
    try:
        return environment.token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
