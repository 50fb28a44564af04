"""Deletes models and unfinished downloads, and returns the bytes that are actually freed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.errors import BadRequest, ModelNotFound
from core.hub.cache_layout import Cache
from core.hub.file_lock import try_lock
from core.hub.installed import revisions
from core.sentence import sentence
from core.weights.gguf.names import split_names


def remove(cache: Cache, id: str) -> int:
    """Delete a model, all its commits and unfinished files; for ID:FILE.gguf only what belongs to that file.

    Returns the bytes freed. Raises ModelNotFound, BadRequest.
    """
    if ":" in id:
        return remove_gguf(cache, id)
    repo = cache.repo(id)
    if not repo.is_dir():
        raise ModelNotFound(sentence("{} is not on this computer.", id), "", "Run `models` to see what is.")
    _check_idle(cache, id)
    payloads = [payload for payload in _shared(repo) if not _used_elsewhere(cache, repo, payload)]
    freed = own_bytes(repo) + sum(payload.stat().st_size for payload in payloads)
    with _told(id):
        _delete(repo)
        for payload in payloads:
            payload.unlink()
            payload.with_name(payload.name + ".refs").unlink(missing_ok=True)
    shutil.rmtree(cache.root / ".locks" / repo.name, ignore_errors=True)
    return freed


def _delete(folder: Path) -> None:
    """Delete a folder completely or not at all: if a file in it is in use, Windows already refuses the rename."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}")
    folder.rename(doomed)
    try:
        shutil.rmtree(doomed)
    except OSError:
        doomed.rename(folder)
        raise


def discard(cache: Cache, id: str) -> int:
    """Delete the files of an abandoned download; complete versions of the model stay. Returns the bytes freed. Raises
    BadRequest."""
    if ":" in id:
        return remove_gguf(cache, id)
    repo = cache.repo(id)
    if not any((repo / "snapshots").glob("*/*")):
        return remove(cache, id) if repo.is_dir() else 0
    _check_idle(cache, id)
    shown = {path.resolve() for path in (repo / "snapshots").rglob("*")}
    lost = [blob for blob in (repo / "blobs").glob("*") if blob.resolve() not in shown and blob.lstat().st_nlink == 1]
    freed = sum(blob.lstat().st_size for blob in lost)
    with _told(id):
        for path in lost:
            path.unlink()
        for path in (cache.own(id) / "listings").glob("*.json"):
            if not cache.snapshot(id, path.stem).is_dir():
                path.unlink()
    return freed


def remove_gguf(cache: Cache, name: str) -> int:
    """Delete one GGUF model, complete or not, of all commits; return the bytes freed. Raises ModelNotFound, ..."""
    id, _, file = name.partition(":")
    repo, names = cache.repo(id), split_names(file)
    here = [model.id for model in revisions(cache, id)]
    if name not in here:
        raise ModelNotFound(sentence("{} is not on this computer.", name), "", "Run `models` to see what is.")
    if set(here) == {name}:
        return remove(cache, id)
    _check_idle(cache, id)
    before, shown = own_bytes(repo), _places(repo, names)
    doomed = {place.resolve() for place in shown} | _blobs(cache, id, names)
    with _told(name):
        for place in shown:
            place.unlink()
        needed = {path.resolve() for path in (repo / "snapshots").rglob("*")}
        for blob in doomed - needed:
            if repo.resolve() in blob.parents:
                blob.unlink(missing_ok=True)
    return before - own_bytes(repo)


def _places(repo: Path, names: Sequence[str]) -> list[Path]:
    """Return the snapshots' entries of these files."""
    folders = (repo / "snapshots").glob("*")
    return [folder / name for folder in folders for name in names if os.path.lexists(folder / name)]


def _blobs(cache: Cache, id: str, names: Sequence[str]) -> set[Path]:
    """Return the complete and unfinished contents of these files, according to every stored listing."""
    commits = [path.stem for path in (cache.own(id) / "listings").glob("*.json")]
    listings = [listing for commit in commits if (listing := cache.read_listing(id, commit))]
    etags = {file.etag for listing in listings for file in listing.files if file.path in names}
    return {place.resolve() for etag in etags for place in (cache.blob(id, etag), cache.partial(id, etag))}


def drop_partials(cache: Cache, id: str, kept: Collection[str] = ()) -> int:
    """Delete unfinished files that no program is writing, except those `kept`, by etag; return the bytes freed."""
    freed = 0
    for etag, path in cache.partials(id).items():
        lock = None if etag in kept else try_lock(cache.lock(id, etag))
        if lock is None:
            continue
        freed += path.stat().st_size
        path.unlink()
        lock.release()
    return freed


@contextmanager
def _told(id: str) -> Iterator[None]:
    """Context: convert OSError to BadRequest. Windows does not delete files that a program has open."""
    try:
        yield
    except OSError as error:
        raise BadRequest(
            sentence("{} could not be removed.", id),
            f"{error.strerror or error}.",
            "If it is loaded, load another model first. Close other programs that use it, then try again.",
        ) from error


def _check_idle(cache: Cache, id: str) -> None:
    for etag in cache.partials(id):
        lock = try_lock(cache.lock(id, etag))
        if lock is None:
            raise BadRequest(sentence("{} is being downloaded.", id), "", "Pause the download, then remove it.")
        lock.release()


def own_bytes(repo: Path) -> int:
    """Return the bytes that deleting the folder frees: each file once, and none that is hard-linked elsewhere."""
    sizes: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in _files(repo):
        status = path.lstat()
        key = status.st_dev, status.st_ino
        names = sizes.get(key, (0, 0, 0))[2] + 1
        sizes[key] = status.st_size, status.st_nlink, names
    return sum(size for size, links, names in sizes.values() if names >= links)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if not (path := Path(parent, name)).is_symlink())


def _shared(repo: Path) -> list[Path]:
    """Return contents in huggingface_hub's shared store that this repository's blobs link to."""
    blobs = [path for path in (repo / "blobs").glob("*") if path.is_symlink()]
    return [path for path in {blob.resolve() for blob in blobs} if path.is_file()]


def _used_elsewhere(cache: Cache, repo: Path, payload: Path) -> bool:
    if cache.root.resolve() not in payload.parents:
        return True
    others = (blob for blob in cache.root.glob("*--*/blobs/*") if blob.is_symlink() and repo not in blob.parents)
    return any(blob.resolve() == payload for blob in others)
