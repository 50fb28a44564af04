"""The Hub's address and its local folders, from the environment variables of Hugging Face's programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from core.errors import BadRequest
from core.sentence import sentence

PUBLIC_ENDPOINT = "https://huggingface.co"
PUBLIC_HOSTS = ("huggingface.co", "hf.co")
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True)
class HubEnvironment:
    """`cache` holds models--org--name folders; `token`: HF_TOKEN; `token_host`: the only mirror that may receive it."""

    endpoint: str
    cache: Path
    token_file: Path
    token: str = ""
    token_host: str = ""
    offline: bool = False
    implicit_token: bool = True
    symlinks: bool = True

    @property
    def host(self) -> str:
        """The endpoint's host, with its port if one is given."""
        return parts_of(self.endpoint).netloc


def hub_environment(variables: Mapping[str, str]) -> HubEnvironment:
    """Read HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE and related variables as huggingface_hub
    does."""
    home = _folder(variables, "HF_HOME") or _default_home(variables)
    cache = _folder(variables, "HF_HUB_CACHE") or _folder(variables, "HUGGINGFACE_HUB_CACHE") or home / "hub"
    return HubEnvironment(
        endpoint=_endpoint(variables.get("HF_ENDPOINT", "").strip() or PUBLIC_ENDPOINT),
        cache=cache,
        token_file=_folder(variables, "HF_TOKEN_PATH") or home / "token",
        token=(variables.get("HF_TOKEN") or variables.get("HUGGING_FACE_HUB_TOKEN") or "").strip(),
        token_host=variables.get("HETEGEN_TOKEN_HOST", "").strip(),
        offline=_is_true(variables, "HF_HUB_OFFLINE") or _is_true(variables, "TRANSFORMERS_OFFLINE"),
        implicit_token=not _is_true(variables, "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
        symlinks=not _is_true(variables, "HF_HUB_DISABLE_SYMLINKS"),
    )


def _default_home(variables: Mapping[str, str]) -> Path:
    base = _folder(variables, "XDG_CACHE_HOME") or Path.home() / ".cache"
    return base / "huggingface"


def _folder(variables: Mapping[str, str], name: str) -> Path | None:
    text = variables.get(name, "")
    return Path(_filled_in(text, variables)).expanduser() if text else None


def _filled_in(text: str, variables: Mapping[str, str]) -> str:
    """Expand variables in a path; unknown ones stay unchanged."""
    return VARIABLE.sub(lambda found: variables.get(found[1] or found[2], found[0]), text)


def parts_of(address: str) -> SplitResult:
    """Split an address; return empty parts if it is invalid (an unclosed bracket, a non-numeric port)."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return SplitResult("", "", "", "", "")
    return parts


def check_endpoint(address: str) -> None:
    """Raise BadRequest if HF_ENDPOINT is not a web address."""
    parts = parts_of(address)
    is_clean = all(sign.isprintable() and not sign.isspace() for sign in address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_clean:
        raise BadRequest(
            sentence("HF_ENDPOINT is {}, which is no web address.", repr(address)), "",
            sentence("Set it to one such as {}, or unset it.", PUBLIC_ENDPOINT),
        )  # fmt: skip


def _endpoint(text: str) -> str:
    """Return the Hub's address, with https if no scheme is given."""
    return (text if "://" in text else f"https://{text}").rstrip("/")


def _is_true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").upper() in TRUE_WORDS
