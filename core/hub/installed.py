"""The models on this disk: listing them, finding one by name, checking them.

A model that is only partly here is listed as such and never found: what is shown as whole has all its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import HeteGenError, ModelNotFound
from core.events import Stop, never
from core.hub.cache_layout import PREFIX, Cache
from core.hub.environment import hub_environment
from core.hub.file_selection import CONFIG, needed_files, shown_files
from core.hub.listing import COMMIT, DIGEST, Listing, RemoteFile, parse_reference
from core.hub.partial_file import hash_file
from core.sentence import sentence
from core.weights.safetensors_header import read_header
from core.weights.weight_files import INDEX, SINGLE, shard_names, weight_files

PATH_LIKE = re.compile(r"[.~/\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Installed:
    """A model on this disk at one commit. `bytes` are here of `total` in all; `last_used` in seconds since the epoch,
    None = never from here."""

    id: str
    revision: str
    path: Path
    bytes: int
    total: int
    complete: bool
    last_used: float | None = None


@dataclass(frozen=True)
class Verification:
    """What checking a model's files found, by file name. `unknown` files have no checksum to compare with."""

    checked_bytes: int
    bad: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.bad and not self.missing


def default_cache() -> Cache:
    """The cache that the environment's variables name."""
    settings = hub_environment(os.environ)
    return Cache(settings.cache, settings.symlinks)


def resolve_model(text: str, cache: Cache | None = None) -> Path:
    """The folder of a model: a path, or a Hub id (or ID@REVISION) that is wholly here. Raises ModelNotFound, ..."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if PATH_LIKE.match(text):
        raise ModelNotFound(sentence("There is no model at {}.", text), "", "Check the path.")
    reference = parse_reference(text)
    cache = cache or default_cache()
    here = _candidates(cache, reference.id, reference.revision)
    whole = next((model for model in here if model.complete), None)
    if whole is None:
        raise ModelNotFound(
            sentence("{} is {} on this computer.", reference.id, 'only partly' if here else 'not'), "",
            sentence("Run `download {}` to {}.", reference.id, 'complete it' if here else 'get it'),
        )  # fmt: skip
    cache.mark_used(whole.id)
    return whole.path


def installed(cache: Cache) -> tuple[Installed, ...]:
    """All models of the cache that have, or will have, safetensors weights; by name."""
    folders = sorted(cache.root.glob(PREFIX + "*")) if cache.root.is_dir() else []
    ids = [folder.name.removeprefix(PREFIX).replace("--", "/") for folder in folders if folder.is_dir()]
    return tuple(model for id in ids for model in revisions(cache, id))


def revisions(cache: Cache, id: str) -> tuple[Installed, ...]:
    """The commits of one model that are here, whole ones first, then the one that main stood for."""
    commits = [folder.name for folder in _folders(cache.repo(id) / "snapshots")]
    found = [model for commit in commits if (model := _snapshot(cache, id, commit))]
    if started := _started(cache, id, set(commits)):
        found.append(started)
    main = cache.read_ref(id, "main")
    return tuple(sorted(found, key=lambda model: (not model.complete, model.revision != main)))


def verify(
    cache: Cache, id: str, commit: str, advance: Callable[[int], None] = lambda _: None, stop: Stop = never
) -> Verification:
    """Read all files of a model and compare their checksums; wrong ones are fetched again by the next `download`.

    `advance` hears of the bytes read. Raises Stopped.
    """
    files, unknown = _checkable(cache, id, commit)
    bad, missing, checked = [], [], 0
    for file in files:
        place = cache.content(id, commit, file)
        if place is None:
            missing.append(file.path)
        elif hash_file(place, file, stop, advance) == file.etag:
            cache.mark_verified(id, file.etag, place)
            checked += file.size
        else:
            cache.forget_verified(id, file.etag)
            bad.append(file.path)
    return Verification(checked, tuple(bad), tuple(missing), tuple(unknown))


def _candidates(cache: Cache, id: str, revision: str) -> tuple[Installed, ...]:
    here = revisions(cache, id)
    if revision == "main":
        return here
    commit = cache.read_ref(id, revision)
    return tuple(model for model in here if model.revision == commit)


def _snapshot(cache: Cache, id: str, commit: str) -> Installed | None:
    """A commit that is shown to programs; None when it is no model with safetensors weights."""
    folder = cache.snapshot(id, commit)
    listing = cache.read_listing(id, commit)
    if listing is None:
        return _unlisted(cache, id, commit)
    if shown_files(cache, listing) is None and not any(folder.glob("*.safetensors")):
        return None
    return _counted(cache, listing, complete=shown_files(cache, listing) is not None)


def _started(cache: Cache, id: str, shown: set[str]) -> Installed | None:
    """The newest download that was begun and shows nothing yet."""
    kept = sorted((cache.own(id) / "listings").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not kept or kept[-1].stem in shown:
        return None
    listing = cache.read_listing(id, kept[-1].stem)
    return _counted(cache, listing, complete=False) if listing else None


def _counted(cache: Cache, listing: Listing, *, complete: bool) -> Installed | None:
    id, commit = listing.id, listing.revision
    index = listing.file(INDEX)
    place = cache.content(id, commit, index) if index else None
    try:
        files = {file.etag: file for file in needed_files(listing, place.read_bytes() if place else None)}
    except HeteGenError:
        return None
    here = sum(cache.bytes_here(id, commit, file) for file in files.values())
    total = sum(file.size for file in files.values())
    return Installed(id, commit, cache.snapshot(id, commit), here, total, complete, cache.last_used(id))


def _unlisted(cache: Cache, id: str, commit: str) -> Installed | None:
    """A snapshot by another program, of which no list of files is known: its own index and headers must do."""
    folder = cache.snapshot(id, commit)
    weights = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    if not weights or not (folder / CONFIG).is_file():
        return None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    total = size + _missing_shards(folder) * (sum(path.stat().st_size for path in weights) // len(weights))
    return Installed(id, commit, folder, size, total, is_whole(folder), cache.last_used(id))


def _missing_shards(folder: Path) -> int:
    """How many of the files that an index names are not here; their sizes are in no file, but alike."""
    try:
        names = shard_names((folder / INDEX).read_bytes(), folder.name)
    except (HeteGenError, OSError):
        return 0
    return 0 if (folder / SINGLE).is_file() else sum(not (folder / name).is_file() for name in names)


def is_whole(folder: Path) -> bool:
    """Whether all weights of a folder are there to their last byte, and no file of it is a link to nothing."""
    try:
        for file in weight_files(folder):
            read_header(file)
    except (HeteGenError, OSError):
        return False
    return all(path.exists() for path in folder.rglob("*"))


def _checkable(cache: Cache, id: str, commit: str) -> tuple[list[RemoteFile], list[str]]:
    """Files with known checksums: the listing's, else those whose blobs are named by them; and the names of others."""
    folder = cache.snapshot(id, commit)
    if listing := cache.read_listing(id, commit):
        index = listing.file(INDEX)
        return list(needed_files(listing, cache.read(id, commit, index) if index else None)), []
    files, unknown = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, etag = path.relative_to(folder).as_posix(), path.readlink().name if path.is_symlink() else ""
        if DIGEST.fullmatch(etag):
            size = path.stat().st_size
            files.append(RemoteFile(name, size, etag, etag if len(etag) == 64 else ""))
        else:
            unknown.append(name)
    return files, unknown


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and COMMIT.fullmatch(path.name))
