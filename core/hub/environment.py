"""Where the Hub is and where its files lie here: the variables that every Hugging Face program respects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC_ENDPOINT = "https://huggingface.co"
PUBLIC_HOSTS = ("huggingface.co", "hf.co")
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True)
class HubEnvironment:
    """`cache` holds models--org--name folders; `token` is HF_TOKEN's; `token_host` the only mirror it may go to."""

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
        """The endpoint's host, with its port where one is given."""
        return urlsplit(self.endpoint).netloc


def hub_environment(variables: Mapping[str, str]) -> HubEnvironment:
    """Read HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE and their kin, as huggingface_hub does."""
    home = _folder(variables, "HF_HOME") or _default_home(variables)
    cache = _folder(variables, "HF_HUB_CACHE") or _folder(variables, "HUGGINGFACE_HUB_CACHE") or home / "hub"
    return HubEnvironment(
        endpoint=(variables.get("HF_ENDPOINT", "").strip() or PUBLIC_ENDPOINT).rstrip("/"),
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
    return Path(text).expanduser() if text else None


def _is_true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").upper() in TRUE_WORDS
