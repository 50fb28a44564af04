"""The Hugging Face cache on disk: models--org--name/{blobs,refs,snapshots}, and our own files beside them.

It is shared with other programs in both directions. Our own files are `blobs/<etag>.hetegen.incomplete` (an unfinished
download) and `.hetegen/`: listings by commit, which blobs were verified, when the model was last used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.files import move_over, write_whole
from core.hub.listing import DIGEST, Listing, RemoteFile, is_safe_path

PREFIX = "models--"
PARTIAL = ".hetegen.incomplete"
OWN = ".hetegen"
LISTING_VERSION = 1


@dataclass(frozen=True)
class Cache:
    """Paths in a cache folder. `symlinks`: False if the user forbids them (HF_HUB_DISABLE_SYMLINKS)."""

    root: Path
    symlinks: bool = True

    def repo(self, id: str) -> Path:
        """Return the folder of a model."""
        return self.root / (PREFIX + id.replace("/", "--"))

    def blob(self, id: str, etag: str) -> Path:
        """Return the path of a complete file, by its content."""
        return self.repo(id) / "blobs" / etag

    def partial(self, id: str, etag: str) -> Path:
        """Return the path of an unfinished file."""
        return self.repo(id) / "blobs" / (etag + PARTIAL)

    def lock(self, id: str, etag: str) -> Path:
        """Return the lock file that a download of this content holds."""
        return self.root / ".locks" / self.repo(id).name / f"{etag}.lock"

    def snapshot(self, id: str, commit: str) -> Path:
        """Return the folder of one version, whose names link to blobs."""
        return self.repo(id) / "snapshots" / commit

    def own(self, id: str) -> Path:
        """Return the folder of our own files."""
        return self.repo(id) / OWN

    def prepare(self, listing: Listing) -> None:
        """Create a repository's folders and store the listing, which tells offline whether a model is complete."""
        # `snapshots` is created now: without it, other programs consider the cache corrupt.
        for name in ("blobs", "snapshots", f"{OWN}/listings"):
            (self.repo(listing.id) / name).mkdir(parents=True, exist_ok=True)
        entry = {"version": LISTING_VERSION, "files": [asdict(file) for file in listing.files]}
        write_whole(self.own(listing.id) / "listings" / f"{listing.revision}.json", json.dumps(entry))

    def content(self, id: str, commit: str, file: RemoteFile) -> Path | None:
        """Return the path of a file's complete content: its blob, or its snapshot entry if links are not possible."""
        for place in (self.blob(id, file.etag), self.snapshot(id, commit) / file.path):
            if _size(place) == file.size:
                return place
        return None

    def bytes_here(self, id: str, commit: str, file: RemoteFile) -> int:
        """Return the bytes of a file that need not be fetched: all of it, or those of an unfinished download."""
        if self.content(id, commit, file):
            return file.size
        return min(_size(self.partial(id, file.etag)) or 0, file.size)

    def read(self, id: str, commit: str, file: RemoteFile) -> bytes:
        """Return a small file's content, once it is here. Raises OSError."""
        place = self.content(id, commit, file)
        return (place or self.blob(id, file.etag)).read_bytes()

    def is_verified(self, id: str, etag: str, path: Path) -> bool:
        """Return whether the file at `path` is unchanged since its checksum was verified."""
        try:
            return (self.own(id) / "verified" / etag).read_text("ascii") == _state(path)
        except (OSError, UnicodeDecodeError):
            return False

    def mark_verified(self, id: str, etag: str, path: Path) -> None:
        """Record that the file's checksum was right, with its current size and mtime."""
        mark = self.own(id) / "verified" / etag
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, _state(path))

    def forget_verified(self, id: str, etag: str) -> None:
        """Have the file's checksum verified again next time."""
        (self.own(id) / "verified" / etag).unlink(missing_ok=True)

    def mark_used(self, id: str) -> None:
        """Record that the model is used now; does nothing if the cache is read-only."""
        try:
            self.own(id).mkdir(exist_ok=True)
            (self.own(id) / "used").write_text(str(time.time()), "ascii")
        except OSError:
            return

    def last_used(self, id: str) -> float | None:
        """Return seconds since the epoch, None if it was never used by this program."""
        try:
            return float((self.own(id) / "used").read_text("ascii"))
        except (OSError, ValueError):
            return None

    def read_listing(self, id: str, commit: str) -> Listing | None:
        """Return our listing of a commit, else huggingface_hub's, else None."""
        ours = _json(self.own(id) / "listings" / f"{commit}.json")
        theirs = _json(self.repo(id) / "trees" / f"{commit}.json")
        try:
            if ours.get("version") == LISTING_VERSION:
                files = tuple(RemoteFile(**entry) for entry in ours["files"])
            elif theirs.get("format_version") == 1:
                files = tuple(_their_file(path, entry) for path, entry in theirs["files"].items())
            else:
                return None
        except (TypeError, KeyError, AttributeError):
            return None
        if not all(is_safe_path(file.path) and DIGEST.fullmatch(file.etag) for file in files):
            return None
        return Listing(id, commit, files)

    def link(self, id: str, commit: str, files: Sequence[RemoteFile]) -> Path:
        """Link complete blobs to their names in the snapshot, the config last; return the snapshot's folder."""
        folder = self.snapshot(id, commit)
        placed: dict[str, Path] = {}
        for file in sorted(files, key=lambda file: file.path == "config.json"):
            place, blob = folder / file.path, self.blob(id, file.etag)
            place.parent.mkdir(parents=True, exist_ok=True)
            # Without links, the content moves to the snapshot; it may be there already, or under a duplicate's name.
            if blob.exists():
                self._link(blob, place)
            elif _size(place) != file.size:
                shutil.copyfile(placed[file.etag], place)
            placed[file.etag] = place
        return folder

    def write_ref(self, id: str, revision: str, commit: str) -> None:
        """Record the commit of a branch or tag; a commit needs no record."""
        if revision != commit:
            place = self.repo(id) / "refs" / revision
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, commit)

    def read_ref(self, id: str, revision: str) -> str:
        """Return the commit of a branch or tag, the revision itself if it is a local commit, else ""."""
        if self.snapshot(id, revision).is_dir():
            return revision
        try:
            return (self.repo(id) / "refs" / revision).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def partials(self, id: str) -> dict[str, Path]:
        """Return the unfinished files by etag."""
        return {path.name.removesuffix(PARTIAL): path for path in (self.repo(id) / "blobs").glob("*" + PARTIAL)}

    def _link(self, blob: Path, place: Path) -> None:
        if place.exists() and place.samefile(blob):
            return
        fresh = place.with_name(f"{place.name}.{os.getpid()}.new")
        fresh.unlink(missing_ok=True)
        for way in (_symlink, os.link) if self.symlinks else (os.link,):
            if _works(way, blob, fresh):
                break
        else:
            move_over(blob, fresh)
        move_over(fresh, place)


def _symlink(blob: Path, place: Path) -> None:
    place.symlink_to(os.path.relpath(blob, place.parent))


def _works(way: Callable[[Path, Path], None], blob: Path, place: Path) -> bool:
    try:
        way(blob, place)
    except (OSError, NotImplementedError):
        # Windows allows symlinks only to some users, and FAT file systems have no links at all.
        return False
    return True


def _state(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _their_file(path: str, entry: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(path, int(entry["size"]), str(entry["blob_id"]), str(entry.get("lfs_sha256") or ""))
