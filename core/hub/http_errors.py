"""Translates the Hub's refusals and network failures into errors: statuses, error headers, exceptions."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from core.errors import AccessDenied, HeteGenError, ModelNotFound, NetworkError
from core.hub.retry import Transient
from core.sentence import sentence

RESET_SECONDS = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
TOKEN_PAGE = "settings/tokens"
CHECK_CONNECTION = sentence("Check the connection, then try again.")


def refusal(status: int, headers: Message, endpoint: str, subject: str, *, has_token: bool) -> HeteGenError:
    """Return the error for a status that is not 2xx. `subject` is the model's id, or "" for a search."""
    code = headers.get("X-Error-Code", "")
    host = urlsplit(endpoint).netloc
    if code == "GatedRepo" or (status == 403 and not code):
        return _gated(endpoint, subject, has_token=has_token)
    if status == 401:
        return _unauthorized(code, endpoint, subject, has_token=has_token)
    if status == 403:
        why = headers.get("X-Error-Message", "") or sentence("{} refuses it.", host)
        return AccessDenied(sentence("{} may not be read.", subject or host), why, "Check what your token may do.")
    if status == 404:
        return _missing(code, host, subject)
    if status == 429:
        return NetworkError(
            sentence("{} asks to slow down.", host), "Too many requests were made.", "Wait a few minutes."
        )
    if status >= 500:
        return NetworkError(
            sentence("{} does not work at the moment.", host), sentence("It answered {}.", status), "Try again later."
        )
    return NetworkError(
        sentence("{} refused the request.", host), sentence("It answered {}.", status), "Try again later."
    )


def _gated(endpoint: str, subject: str, *, has_token: bool) -> AccessDenied:
    then = sentence("then try again") if has_token else sentence("then enter your token")
    return AccessDenied(
        sentence("Access to {} has to be granted first.", subject or "this model"),
        "Its owner asks people to accept a licence."
        if not has_token
        else "Your account has not been given access, or the token may not read gated models.",
        sentence("Accept the licence at {}/{}, {}.", endpoint, subject, then),
    )


def _unauthorized(code: str, endpoint: str, subject: str, *, has_token: bool) -> HeteGenError:
    if has_token:
        return AccessDenied(
            "The token was not accepted.",
            "It may be mistyped, expired or revoked.",
            sentence("Make a new one at {}/{} and enter it.", endpoint, TOKEN_PAGE),
        )
    if code == "RepoNotFound":
        return ModelNotFound(
            sentence("There is no model {} that everyone may read.", subject),
            "It does not exist or is private.",
            "Check the spelling, or enter a token that may read it.",
        )
    return AccessDenied(
        sentence("{} may only be read with a token.", subject or "This"),
        "",
        sentence("Make one at {}/{} and enter it.", endpoint, TOKEN_PAGE),
    )


def _missing(code: str, host: str, subject: str) -> ModelNotFound:
    if code == "RevisionNotFound":
        return ModelNotFound(
            sentence("{} has no such revision.", subject), "", "Leave the revision out to take the newest."
        )
    if code == "EntryNotFound":
        return ModelNotFound(sentence("A file of {} is not on {}.", subject, host), "", "Choose another model.")
    return ModelNotFound(
        sentence("There is no model {} on {}.", subject, host), "", "Check the spelling, or search for it."
    )


def retry_after(headers: Message) -> float | None:
    """Return the seconds that the server asks to wait: Retry-After, else the Hub's RateLimit; None = not stated."""
    said = headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said)
    if said:
        try:
            return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return None
    reset = RESET_SECONDS.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None


def broken_line(error: Exception, url: str) -> Transient | NetworkError:
    """Return the error for a network exception. An untrusted certificate is not transient."""
    host = urlsplit(url).netloc
    if isinstance(error, ssl.SSLCertVerificationError):
        return NetworkError(
            sentence("The connection to {} is not safe.", host),
            sentence("Its certificate was not accepted: {}.", error.verify_message),
            "Check this computer's date, or ask who runs the network.",
        )
    if isinstance(error, ssl.SSLError):
        return Transient(
            NetworkError(sentence("No safe connection to {}.", host), f"{error.reason or error}.", CHECK_CONNECTION)
        )
    if isinstance(error, socket.gaierror):
        return Transient(NetworkError(sentence("{} was not found.", host), "The network may be off.", CHECK_CONNECTION))
    if isinstance(error, TimeoutError):
        return Transient(
            NetworkError(sentence("{} does not answer.", host), "It was silent for too long.", CHECK_CONNECTION)
        )
    if isinstance(error, ConnectionRefusedError):
        return Transient(
            NetworkError(sentence("{} cannot be reached.", host), "It refuses connections.", CHECK_CONNECTION)
        )
    if isinstance(error, ConnectionError):
        return Transient(NetworkError(sentence("The connection to {} broke.", host), "", CHECK_CONNECTION))
    return Transient(NetworkError(sentence("{} cannot be reached.", host), _sentence(error), CHECK_CONNECTION))


def _sentence(error: Exception) -> str:
    words = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return words[:1].upper() + words[1:].rstrip(".") + "."
