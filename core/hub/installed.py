"""The local models: listing them, finding one by name, verifying their files.

Incomplete models are listed as such but never found by name: a model that is found has all its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadRequest, HeteGenError, ModelNotFound
from core.events import Stop, never
from core.hub.cache_layout import PREFIX, Cache
from core.hub.environment import hub_environment
from core.hub.file_selection import CONFIG, needed_files, shown_files
from core.hub.gguf_choices import gguf_choices, gguf_only
from core.hub.listing import COMMIT, DIGEST, Listing, Reference, RemoteFile, parse_reference
from core.hub.partial_file import hash_file
from core.sentence import joined, sentence
from core.weights.gguf.names import kind_of, split_names
from core.weights.safetensors_header import read_header
from core.weights.weight_files import INDEX, SINGLE, shard_names, weight_files

LOOKS = 3
"""How often a repository is read whose files are removed or renamed meanwhile."""
PATH_LIKE = re.compile(r"[.~/\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Installed:
    """A local model at one commit. For a GGUF model, `id` includes the file name and `path` is the file's; otherwise
    `path` is a folder. `bytes` of `total` are here; `last_used` in seconds since the epoch, None = never."""

    id: str
    revision: str
    path: Path
    bytes: int
    total: int
    complete: bool
    last_used: float | None = None


@dataclass(frozen=True)
class Verification:
    """The result of verifying a model's files, by file name. `unknown` files have no checksum to compare with."""

    checked_bytes: int
    bad: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every file is present and correct."""
        return not self.bad and not self.missing


def default_cache() -> Cache:
    """Return the cache that the environment variables name."""
    settings = hub_environment(os.environ)
    return Cache(settings.cache, settings.symlinks)


def resolve_model(text: str, cache: Cache | None = None) -> Path:
    """Return the folder or GGUF file of a model: a path, or a Hub id (ID, ID@REVISION, ID:FILE.gguf, ID:Q4_K_M) that is
    complete here. Raises ModelNotFound, BadRequest."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if PATH_LIKE.match(text):
        raise ModelNotFound(sentence("There is no model at {}.", text), "", "Check the path.")
    cache = cache or default_cache()
    found = find_installed(text, cache)
    cache.mark_used(parse_reference(found.id).id)
    return found.path


def find_installed(text: str, cache: Cache) -> Installed:
    """Return the complete local model of this name. Raises ModelNotFound, BadRequest."""
    reference = parse_reference(text)
    here = candidates(cache, reference)
    whole = [model for model in here if model.complete]
    if len({model.id for model in whole}) > 1:
        raise BadRequest(
            sentence("Several models in GGUF of {} are on this computer.", reference.id),
            sentence("There are {}.", joined(", ", [model.id for model in whole])),
            sentence("Name one of them, such as {}.", whole[0].id),
        )
    if whole:
        return whole[0]
    if here:
        what = sentence("{} is only partly on this computer.", reference.name)
        raise ModelNotFound(what, "", sentence("Run `download {}` to complete it.", reference.name))
    what = sentence("{} is not on this computer.", reference.name)
    raise ModelNotFound(what, "", sentence("Run `download {}` to get it.", reference.name))


def installed(cache: Cache) -> tuple[Installed, ...]:
    """Return all models of the cache with safetensors or GGUF weights, downloaded or begun, by name."""
    folders = sorted(cache.root.glob(PREFIX + "*")) if cache.root.is_dir() else []
    ids = [folder.name.removeprefix(PREFIX).replace("--", "/") for folder in folders if folder.is_dir()]
    return tuple(model for id in ids for model in _here(cache, id))


def _here(cache: Cache, id: str) -> tuple[Installed, ...]:
    """Return a repository's models, none if it is removed while it is read."""
    for _ in range(LOOKS):
        with suppress(FileNotFoundError):
            return revisions(cache, id)
    return revisions(cache, id) if cache.repo(id).is_dir() else ()


def revisions(cache: Cache, id: str) -> tuple[Installed, ...]:
    """Return the local commits of one repository's models, complete ones first, and main's before others."""
    commits = [folder.name for folder in _folders(cache.repo(id) / "snapshots")]
    found = [model for commit in commits for model in _snapshot(cache, id, commit)]
    found += _started(cache, id, set(commits))
    main = cache.read_ref(id, "main")
    return tuple(sorted(found, key=lambda model: (not model.complete, model.revision != main)))


def candidates(cache: Cache, reference: Reference) -> tuple[Installed, ...]:
    """Return what a name may refer to; a repository's safetensors come first if no file is named."""
    here = revisions(cache, reference.id)
    if reference.revision != "main":
        commit = cache.read_ref(reference.id, reference.revision)
        here = tuple(model for model in here if model.revision == commit)
    plain = tuple(model for model in here if model.id == reference.id)
    return tuple(model for model in here if _is_meant(model, reference.file)) if reference.file else plain or here


def verify(
    cache: Cache, id: str, commit: str, advance: Callable[[int], None] = lambda _: None, stop: Stop = never
) -> Verification:
    """Read all files of a model (ID, or ID:FILE.gguf) and compare their checksums; the next `download` fetches wrong
    ones again.

    `advance` is called with the number of bytes read. Raises Stopped.
    """
    files, unknown = _checkable(cache, id, commit)
    id = id.partition(":")[0]
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


def _is_meant(model: Installed, file: str) -> bool:
    path = model.id.partition(":")[2]
    return bool(path) and file.lower() in (kind_of(path).lower(), *split_names(path.lower()), model.path.name.lower())


def _snapshot(cache: Cache, id: str, commit: str) -> list[Installed]:
    """Return the models of a published commit."""
    folder = cache.snapshot(id, commit)
    listing = cache.read_listing(id, commit)
    if listing is None:
        return _unlisted(cache, id, commit)
    found = _ggufs(cache, listing)
    is_whole = shown_files(cache, listing) is not None and not gguf_only(listing)
    if is_whole or any(folder.glob("*.safetensors")):
        found += _counted(cache, listing, complete=is_whole)
    return found


def _started(cache: Cache, id: str, shown: set[str]) -> list[Installed]:
    """Return the models of the newest download that has been started and published nothing yet."""
    kept = sorted((cache.own(id) / "listings").glob("*.json"), key=_written_at)
    if not kept or kept[-1].stem in shown:
        return []
    listing = cache.read_listing(id, kept[-1].stem)
    if listing is None:
        return []
    return _ggufs(cache, listing) or _counted(cache, listing, complete=False)


def _written_at(path: Path) -> float:
    """Return when a file was written, in seconds; 0 if it has been deleted in the meantime."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _ggufs(cache: Cache, listing: Listing) -> list[Installed]:
    """Return the GGUF models of a listing of which any byte is here."""
    id, commit, used = listing.id, listing.revision, cache.last_used(listing.id)
    folder, found = cache.snapshot(id, commit), []
    for choice in gguf_choices(listing):
        here = sum(cache.bytes_here(id, commit, file) for file in choice.files)
        whole = here == choice.nbytes and shown_files(cache, listing, choice.path) is not None
        if here:
            name = Reference(id, file=choice.path).name
            found.append(Installed(name, commit, folder / choice.path, here, choice.nbytes, whole, used))
    return found


def _counted(cache: Cache, listing: Listing, *, complete: bool) -> list[Installed]:
    id, commit = listing.id, listing.revision
    index = listing.file(INDEX)
    place = cache.content(id, commit, index) if index else None
    if gguf_only(listing):
        return []
    try:
        files = {file.etag: file for file in needed_files(listing, place.read_bytes() if place else None)}
    except HeteGenError:
        return []
    here = sum(cache.bytes_here(id, commit, file) for file in files.values())
    total = sum(file.size for file in files.values())
    return [Installed(id, commit, cache.snapshot(id, commit), here, total, complete, cache.last_used(id))]


def _unlisted(cache: Cache, id: str, commit: str) -> list[Installed]:
    """Describe a snapshot of another program, without a listing, by its own index and headers."""
    folder = cache.snapshot(id, commit)
    weights = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    if not weights or not (folder / CONFIG).is_file():
        return _unlisted_ggufs(cache, id, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    total = size + _missing_shards(folder) * (sum(path.stat().st_size for path in weights) // len(weights))
    return [Installed(id, commit, folder, size, total, is_whole(folder), cache.last_used(id))]


def _unlisted_ggufs(cache: Cache, id: str, folder: Path) -> list[Installed]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    here = tuple(RemoteFile(name, path.stat().st_size, "") for name, path in sorted(files.items()))
    return [
        Installed(Reference(id, file=choice.path).name, folder.name, files[choice.path], choice.nbytes, choice.nbytes,
                  complete=True, last_used=cache.last_used(id))
        for choice in gguf_choices(Listing(id, folder.name, here))
    ]  # fmt: skip


def _missing_shards(folder: Path) -> int:
    """Return the number of files named by an index that are missing; their sizes are unknown but similar."""
    try:
        names = shard_names((folder / INDEX).read_bytes(), folder.name)
    except (HeteGenError, OSError):
        return 0
    return 0 if (folder / SINGLE).is_file() else sum(not (folder / name).is_file() for name in names)


def is_whole(folder: Path) -> bool:
    """Return whether all weights of a folder are complete, and no file is a dangling link."""
    try:
        for file in weight_files(folder):
            read_header(file)
    except (HeteGenError, OSError):
        return False
    return all(path.exists() for path in folder.rglob("*"))


def _checkable(cache: Cache, id: str, commit: str) -> tuple[list[RemoteFile], list[str]]:
    """Return the files with known checksums, from the listing or from the names of their blobs, and the other names."""
    id, _, wanted = id.partition(":")
    folder = cache.snapshot(id, commit)
    if listing := cache.read_listing(id, commit):
        index = None if wanted else listing.file(INDEX)
        return list(needed_files(listing, cache.read(id, commit, index) if index else None, wanted)), []
    files, unknown = [], []
    names = split_names(wanted) if wanted else None
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if names is not None and path.relative_to(folder).as_posix() not in names:
            continue
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
