"""Unpacks wheels into a folder like an installer would into an environment, never writing outside of it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

from core.errors import DiskFull, DownloadFailed
from core.events import Stop
from core.hub.retry import Stopped
from core.sentence import sentence
from core.startup.torch_folder import PACKAGES

BLOCK_BYTES = 4 << 20
RESERVE_BYTES = 256 << 20
SKIPPED = {"include", "cmake"}
"""Folders needed only for compiling against the libraries: thousands of files."""
DEEP_LICENCES = ("licenses", "third_party")
"""Licences of torch's bundled parts, in paths of up to 173 characters: too long for Windows below a user's folder."""
SCHEMES = {"data": PurePosixPath(), "purelib": PACKAGES, "platlib": PACKAGES}
"""Targets of the parts of a wheel's .data folder; other parts are scripts and headers, which are skipped."""


def unpack(wheels: Sequence[Path], folder: Path, stop: Stop, report: Callable[[int, int], None]) -> int:
    """Unpack into a fresh `folder`; `report(bytes done, bytes in total)`. Returns the total bytes.

    Raises DownloadFailed for an invalid wheel or one with paths outside of the folder, DiskFull, Stopped, OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = sum(entry.file_size for wheel in wheels for entry in _entries(wheel))
    _check_room(folder, total)
    done = 0
    for count in chain.from_iterable(_unpacked(wheel, folder) for wheel in wheels):
        if stop():
            raise Stopped
        done += count
        report(done, total)
    return total


def _unpacked(wheel: Path, folder: Path) -> Iterator[int]:
    """Unpack one wheel; yield the bytes of each step."""
    with _opened(wheel) as archive:
        for entry in _wanted(wheel, archive.infolist()):
            yield from _extract(archive, entry, folder)


def _entries(wheel: Path) -> list[zipfile.ZipInfo]:
    with _opened(wheel) as archive:
        return list(_wanted(wheel, archive.infolist()))


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise DownloadFailed("A part of the GPU runtime is no wheel.", f"{error}.", "Fetch it again.") from error


def _wanted(wheel: Path, entries: Iterable[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
            raise DownloadFailed(
                "The GPU runtime was not unpacked.",
                sentence("{} would write to {}.", wheel.name, f"{entry.filename!r}"),
                "Remove it.",
            )
        if not entry.is_dir() and _is_needed(path) and _place(path):
            yield entry


def _is_needed(path: PurePosixPath) -> bool:
    return not SKIPPED & set(path.parts) and path.parts[1:3] != DEEP_LICENCES


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Return the path of a wheel's file relative to the folder; None for files that are skipped."""
    if not path.parts[0].endswith(".data"):
        return PACKAGES / path
    scheme, *rest = path.parts[1:]
    return SCHEMES[scheme].joinpath(*rest) if scheme in SCHEMES and rest else None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> Iterator[int]:
    place = _place(PurePosixPath(entry.filename))
    assert place is not None
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(entry) as source, target.open("wb") as file:
            while block := source.read(BLOCK_BYTES):
                yield file.write(block)
    except zipfile.BadZipFile as error:
        raise DownloadFailed("A part of the GPU runtime is damaged.", f"{error}.", "Fetch it again.") from error


def _check_room(folder: Path, total: int) -> None:
    short = total + RESERVE_BYTES - shutil.disk_usage(folder).free
    if short > 0:
        raise DiskFull(
            sentence("The GPU runtime does not fit on the disk with {}.", folder.parent),
            sentence(
                "Unpacked it takes {} GB, and {} GB are missing.",
                f"{total / 1e9:.1f}",
                f"{short / 1e9:.1f}",
            ),
            "Make room, then go on: what was downloaded is kept.",
        )
