"""The location of a remote model: the server's address and the model's name there, also as one string."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from core.errors import BadRequest
from core.sentence import sentence

PREFIX = "remote:"
"""The prefix of a remote model's address where a model name is expected."""
API = "/v1"
PRESETS = {
    "HeteGen": "http://127.0.0.1:9931/v1",
    "llama-server": "http://127.0.0.1:8080/v1",
    "LM Studio": "http://127.0.0.1:1234/v1",
    "Ollama": "http://127.0.0.1:11434/v1",
    "SGLang": "http://127.0.0.1:30000/v1",
    "vLLM": "http://127.0.0.1:8000/v1",
}
"""The default addresses of these programs."""


@dataclass(frozen=True)
class Endpoint:
    """A model on a server. `url` as returned by `base_url`; `model`: its name on the server."""

    url: str
    model: str

    @property
    def host(self) -> str:
        """The server's host name or address, for messages."""
        return urlsplit(self.url).hostname or ""

    @property
    def source(self) -> str:
        """The endpoint as one string: `remote:URL#MODEL`."""
        return f"{PREFIX}{self.url}#{quote(self.model, safe='/:@')}"


def parse_source(source: str) -> Endpoint:
    """Parse the result of `Endpoint.source`. Raises BadRequest."""
    url, _, model = source.removeprefix(PREFIX).partition("#")
    return Endpoint(base_url(url), unquote(model))


def base_url(text: str) -> str:
    """Return the base URL for requests from what a user typed: scheme, /v1 and trailing slash are optional.

    Raises BadRequest.
    """
    typed = text.strip()
    with_scheme = typed if "://" in typed else f"http://{typed}"
    try:
        parts = urlsplit(with_scheme)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or any(letter.isspace() for letter in typed):
        raise BadRequest(
            sentence("{} is not the address of a server.", typed or "The address"),
            "",
            "Enter one such as http://192.168.1.20:8000/v1.",
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or API}"
