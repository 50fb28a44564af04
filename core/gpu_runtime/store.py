"""The runtime's folder: what is installed, the result of its trial, and marks for the next start.

gpu-runtime/VERSION/          torch and the maker's libraries as in an environment, with stamp.json, written last
gpu-runtime/VERSION.partial/  a runtime being unpacked
gpu-runtime/downloads/        wheels being downloaded, laid out like the Hub's cache
gpu-runtime/verdict.json      the result of the last trial
gpu-runtime/starting          exists while a start with the runtime has not completed
gpu-runtime/offered           exists if the user was told about the runtime
gpu-runtime/unwanted          exists if the user removed the runtime while it was in use
gpu-runtime.lock              locked by the first program that uses the runtime
"""

from __future__ import annotations

import atexit
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from core.files import move_over, write_whole
from core.hub.cache_layout import Cache
from core.hub.file_lock import try_lock
from core.sentence import pack, unpack

STAMP = "stamp.json"
DOWNLOADS = "gpu-runtime"
"""The name of the downloads among a cache's repositories."""


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial of one build with one driver: the name of the card that worked, or why none did."""

    version: str
    driver: str
    device: str = ""
    why: str = ""

    @property
    def works(self) -> bool:
        """Return whether a card computed with it."""
        return bool(self.device)


@dataclass(frozen=True)
class Runtime:
    """The runtime under one folder, which need not exist."""

    root: Path

    @property
    def downloads(self) -> Cache:
        """Return the cache of the wheels."""
        return Cache(self.root / "downloads")

    def folder(self, version: str) -> Path:
        """Return the folder of an installed version."""
        return self.root / version

    def partial(self, version: str) -> Path:
        """Return the folder of a version while it is unpacked."""
        return self.root / f"{version}.partial"

    def installed(self) -> str:
        """Return torch's version of the completely installed runtime, as "2.13.0+cu130"; "" if there is none."""
        for stamp in sorted(self.root.glob(f"*/{STAMP}"), reverse=True):
            if not stamp.parent.name.endswith(".partial") and _read(stamp).get("version") == stamp.parent.name:
                return stamp.parent.name
        return ""

    def installed_bytes(self) -> int:
        """Return the size of the installed runtime, as recorded when it was unpacked."""
        size = _read(self.folder(self.installed() or "-") / STAMP).get("bytes", 0)
        return size if isinstance(size, int) else 0

    def stamp(self, version: str, size: int) -> None:
        """Turn the unpacked version into the installed runtime. Raises OSError."""
        write_whole(self.partial(version) / STAMP, json.dumps({"version": version, "bytes": size}))
        move_over(self.partial(version), self.folder(version))

    def result(self) -> TrialResult | None:
        """Return the result of the last trial; None if there was none, or if a start after it did not complete."""
        if self._starting.exists():
            return None
        try:
            return TrialResult(**{name: unpack(value) for name, value in _read(self.root / "verdict.json").items()})
        except TypeError:
            return None

    def keep_result(self, result: TrialResult) -> None:
        """Record the result of a trial. Raises OSError."""
        write_whole(self.root / "verdict.json", json.dumps(asdict(result) | {"why": pack(result.why)}))
        self.arrived()

    def set_out(self) -> None:
        """Mark that a start with the runtime begins. Raises OSError."""
        self._starting.touch()

    def arrived(self) -> None:
        """Mark that the start has completed, whatever the outcome. Raises OSError."""
        self._starting.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything. Raises OSError."""
        if self.root.exists():
            shutil.rmtree(self.root)

    def remove_unless_used(self) -> None:
        """Delete everything, unless another program uses the runtime; then a later start does. Raises OSError."""
        lock = try_lock(self._in_use)
        if lock is None:
            return
        try:
            self.remove()
        finally:
            lock.release()

    def hold(self) -> None:
        """Lock the runtime against deletion by other programs, until this process ends."""
        with suppress(OSError):  # if the folder is not writable, nobody can delete it
            lock = try_lock(self._in_use)
            if lock is not None:
                atexit.register(lock.release)  # keep a reference: an unreferenced lock is released

    def remove_later(self) -> None:
        """Mark the runtime for removal at the next start, because loaded libraries cannot be deleted. Raises
        OSError."""
        (self.root / "unwanted").touch()

    def is_unwanted(self) -> bool:
        """Return whether the runtime is to be removed at the next start."""
        return (self.root / "unwanted").exists()

    def was_offered(self) -> bool:
        """Return whether the user was told once that a card could be used."""
        return (self.root / "offered").exists()

    def mark_offered(self) -> None:
        """Record that the user was told; does nothing if the folder is not writable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / "offered").touch()
        except OSError:
            return

    def drop_downloads(self) -> None:
        """Delete wheels, complete and partial. Raises OSError."""
        if self.downloads.root.exists():
            shutil.rmtree(self.downloads.root)

    @property
    def _starting(self) -> Path:
        return self.root / "starting"

    @property
    def _in_use(self) -> Path:
        # Beside the folder, because Windows cannot delete an open file.
        return self.root.with_name(f"{self.root.name}.lock")


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
