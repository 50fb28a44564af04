"""What the Hub states about models: search results, a repository's facts, its files at a commit, its model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from core.errors import BadRequest, DownloadFailed, HeteGenError, NetworkError
from core.events import Stop, never
from core.hub.client import Client
from core.hub.environment import PUBLIC_HOSTS
from core.sentence import sentence
from core.weights.gguf.names import is_model
from core.weights.safetensors_header import ITEM_BITS

Sort = Literal["trendingScore", "downloads", "likes", "lastModified", "createdAt"]
EXPANDED = [
    "downloads",
    "likes",
    "gated",
    "private",
    "lastModified",
    "safetensors",
    "tags",
    "pipeline_tag",
    "sha",
    "gguf",
]
WEIGHT_TAGS = frozenset({"safetensors", "gguf"})
ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
REVISION = re.compile(r"[\w][\w./+-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
CARD_BYTES = 1 << 18
GGUF = ""
"""The dtype of parameters in GGUF files, of which a repository may have several."""
MAX_PAGES = 200


@dataclass(frozen=True)
class Reference:
    """A repository's id, the wanted branch, tag or commit, and for a repository of GGUF files the wanted file: its path
    or kind, "" = not stated."""

    id: str
    revision: str = "main"
    file: str = ""

    @property
    def name(self) -> str:
        """The reference as a user writes it, without the revision."""
        return f"{self.id}:{self.file}" if self.file else self.id


@dataclass(frozen=True)
class ModelInfo:
    """The Hub's facts about one model. `parameters` by dtype, "" for GGUF files, which differ; 0, "" and empty = not
    stated."""

    id: str
    revision: str = ""
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    private: bool = False
    license: str = ""
    updated: str = ""
    task: str = ""
    parameters: tuple[tuple[str, int], ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def parameter_count(self) -> int:
        """Number of parameters of all dtypes; 0 if the Hub does not state it."""
        return sum(count for _, count in self.parameters)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as stored; 0 if the repository offers files of different sizes."""
        return sum(count * ITEM_BITS.get(dtype, 16) // 8 for dtype, count in self.parameters if dtype != GGUF)

    @property
    def gguf_only(self) -> bool:
        """Whether there are GGUF files and no safetensors, according to the tags."""
        return "gguf" in self.tags and "safetensors" not in self.tags


@dataclass(frozen=True)
class Page:
    """Search results; `following` is the next page's address, "" = last page."""

    models: tuple[ModelInfo, ...]
    following: str


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit. `sha256` is "" for small files stored in git, identified by `git_sha1`."""

    path: str
    size: int
    git_sha1: str
    sha256: str = ""

    @property
    def etag(self) -> str:
        """The name of its blob in the cache, which is the checksum of its content."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    id: str
    revision: str
    files: tuple[RemoteFile, ...]

    def file(self, path: str) -> RemoteFile | None:
        """Return the file at a path; None if there is none."""
        return next((file for file in self.files if file.path == path), None)


def parse_reference(text: str) -> Reference:
    """Parse "org/name" or "org/name@revision", either followed by ":FILE", or the address of the model's page or file.

    Raises BadRequest.
    """
    text = text.strip()
    parts = urlsplit(text if "://" in text else f"//{text}")
    if "://" in text or (parts.hostname or "").removeprefix("www.") in PUBLIC_HOSTS:
        return _from_address(text, [unquote(part) for part in parts.path.split("/") if part])
    repository, _, file = text.partition(":")
    name, _, revision = repository.partition("@")
    return _checked(text, Reference(name, revision or "main", file))


def _from_address(text: str, parts: list[str]) -> Reference:
    name, _, file = "/".join(parts[:2]).partition(":")
    revision = "main"
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve", "commit"):
        revision, path = parts[3], "/".join(parts[4:])
        file = path if is_model(path) else file
    return _checked(text, Reference(name, revision, file))


def _checked(text: str, found: Reference) -> Reference:
    name, revision, file = found.id, found.revision, found.file
    if not ID.fullmatch(name) or ".." in name or "--" in name or not REVISION.fullmatch(revision) or ".." in revision:
        raise BadRequest(sentence("{} is not the name of a model.", text or "Nothing"), "", "Write it as owner/name.")
    if file and not is_safe_path(file):
        raise BadRequest(sentence("{} is not the name of a file.", file), "", "Write it as owner/name:FILE.gguf.")
    return found


def search(client: Client, text: str, sort: Sort = "trendingScore", limit: int = 30, stop: Stop = never) -> Page:
    """Return the first page of text-generation models in safetensors or GGUF whose name or tags match."""
    # The Hub combines tag filters by AND; models with either tag are therefore selected here.
    parameters: dict[str, str | list[str]] = {
        "pipeline_tag": "text-generation",
        "sort": sort,
        "direction": "-1",
        "limit": str(limit),
        "expand": EXPANDED,
    }
    if text.strip():
        parameters["search"] = text.strip()
    return next_page(client, client.url("api/models", parameters), stop)


def next_page(client: Client, address: str, stop: Stop = never) -> Page:
    """Return the search results at the `following` address of a previous page."""
    found, following = client.get_json(address, "", stop)
    if not isinstance(found, list):
        raise _not_understood(client)
    models = [_info(entry) for entry in found if isinstance(entry, dict) and "id" in entry]
    return Page(tuple(model for model in models if model.parameters or WEIGHT_TAGS & set(model.tags)), following)


def model_info(client: Client, reference: Reference, stop: Stop = never) -> ModelInfo:
    """Return facts of one model, with the commit of its revision. Raises ModelNotFound, AccessDenied, ..."""
    address = client.url(f"api/models/{reference.id}/revision/{quote(reference.revision, safe='')}")
    found, _ = client.get_json(address, reference.id, stop)
    if not isinstance(found, dict) or not COMMIT.fullmatch(str(found.get("sha", ""))):
        raise _not_understood(client)
    return _info({"id": reference.id, **found})


def list_files(client: Client, id: str, commit: str, stop: Stop = never) -> Listing:
    """Return all files at a commit, page by page. Raises DownloadFailed if a path leads out of the model's folder."""
    address = client.url(f"api/models/{id}/tree/{commit}", {"recursive": "true", "expand": "false"})
    files: list[RemoteFile] = []
    for _ in range(MAX_PAGES):
        found, address = client.get_json(address, id, stop)
        if not isinstance(found, list):
            raise _not_understood(client)
        files += [_file(client, id, entry) for entry in found if entry.get("type") == "file"]
        if not address:
            return Listing(id, commit, tuple(files))
    raise DownloadFailed(sentence("The file list of {} does not end.", id), "", "Choose another model.")


def read_card(client: Client, id: str, commit: str) -> str:
    """Return the model card's markdown without its YAML header."""
    text = client.get_bytes(file_address(client, id, commit, "README.md"), id, size=CARD_BYTES)
    return without_head(text.decode("utf-8", errors="replace"))


def file_address(client: Client, id: str, commit: str, path: str) -> str:
    """Return the address of a file's content."""
    return client.url(f"{id}/resolve/{commit}/{quote(path)}")


def without_head(card: str) -> str:
    """Remove the YAML header between the first two lines of dashes from a model card."""
    return FRONT_MATTER.sub("", card.replace("\r\n", "\n"), count=1).strip()


def is_safe_path(path: str) -> bool:
    """Return whether a repository's file path stays inside its destination folder on every system."""
    parts = PurePosixPath(path).parts
    plain = bool(parts) and path == "/".join(parts) and not path.startswith("/")
    return plain and not any(part in ("..", ".") or re.search(r'[\\:\x00-\x1f"<>|?*]', part) for part in parts)


def _file(client: Client, id: str, entry: Mapping[str, Any]) -> RemoteFile:
    try:
        lfs = entry.get("lfs") or {}
        file = RemoteFile(str(entry["path"]), int(entry["size"]), str(entry["oid"]), str(lfs.get("oid") or ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_understood(client) from error
    if not is_safe_path(file.path):
        raise DownloadFailed(
            sentence("{} was refused.", id),
            sentence("One of its files would be written outside of the model's folder: {}.", f"{file.path!r}"),
            "Choose another model, and report this one to the Hub.",
        )
    if not DIGEST.fullmatch(file.etag) or file.size < 0:
        raise _not_understood(client)
    return file


def _info(entry: Mapping[str, Any]) -> ModelInfo:
    counts = (entry.get("safetensors") or {}).get("parameters") or {}
    if not counts and (total := (entry.get("gguf") or {}).get("total")):
        counts = {GGUF: total}
    tags = tuple(str(tag) for tag in entry.get("tags") or ())
    return ModelInfo(
        id=str(entry["id"]),
        revision=str(entry.get("sha") or ""),
        downloads=int(entry.get("downloads") or 0),
        likes=int(entry.get("likes") or 0),
        gated=bool(entry.get("gated")),
        private=bool(entry.get("private")),
        license=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), ""),
        updated=str(entry.get("lastModified") or ""),
        task=str(entry.get("pipeline_tag") or ""),
        parameters=tuple((str(dtype), int(count)) for dtype, count in counts.items()),
        tags=tags,
    )


def _not_understood(client: Client) -> HeteGenError:
    return NetworkError(
        sentence("{} was not understood.", client.host), "The answer is not what the Hub sends.", "Try again later."
    )
