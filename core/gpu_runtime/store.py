"""The runtime's folder: what is installed, how its trial went, what is marked for the next start.

gpu-runtime/VERSION/          torch and the maker's libraries as in an environment, with stamp.json, written last
gpu-runtime/VERSION.partial/  one being unpacked
gpu-runtime/downloads/        wheels on their way, as a cache of the Hub's kind
gpu-runtime/verdict.json      how the last trial ended
gpu-runtime/starting          there while a start with the runtime has not got to its end
gpu-runtime/offered           there when the user was told of the runtime
gpu-runtime/unwanted          there when the user removed it while it was in use
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
    """How a trial of one build with one driver ended: on a card with this name, or not, and why not."""

    version: str
    driver: str
    device: str = ""
    why: str = ""

    @property
    def works(self) -> bool:
        """Whether a card computed with it."""
        return bool(self.device)


@dataclass(frozen=True)
class Runtime:
    """The runtime under one folder. Nothing need be there."""

    root: Path

    @property
    def downloads(self) -> Cache:
        """The cache of the wheels."""
        return Cache(self.root / "downloads")

    def folder(self, version: str) -> Path:
        """The folder of an installed version."""
        return self.root / version

    def partial(self, version: str) -> Path:
        """The folder of a version while it is unpacked."""
        return self.root / f"{version}.partial"

    def installed(self) -> str:
        """torch's version of the runtime that is whole, as "2.13.0+cu130"; "" without one."""
        for stamp in sorted(self.root.glob(f"*/{STAMP}"), reverse=True):
            if not stamp.parent.name.endswith(".partial") and _read(stamp).get("version") == stamp.parent.name:
                return stamp.parent.name
        return ""

    def installed_bytes(self) -> int:
        """The size of what is installed, as it was when it was unpacked."""
        size = _read(self.folder(self.installed() or "-") / STAMP).get("bytes", 0)
        return size if isinstance(size, int) else 0

    def stamp(self, version: str, size: int) -> None:
        """Make what was unpacked the installed runtime. Raises OSError."""
        write_whole(self.partial(version) / STAMP, json.dumps({"version": version, "bytes": size}))
        move_over(self.partial(version), self.folder(version))

    def result(self) -> TrialResult | None:
        """How the last trial ended; None where there was none, or a start after it did not get to its end."""
        if self._starting.exists():
            return None
        try:
            return TrialResult(**{name: unpack(value) for name, value in _read(self.root / "verdict.json").items()})
        except TypeError:
            return None

    def keep_result(self, result: TrialResult) -> None:
        """Remember how a trial ended. Raises OSError."""
        write_whole(self.root / "verdict.json", json.dumps(asdict(result) | {"why": pack(result.why)}))
        self.arrived()

    def set_out(self) -> None:
        """A start with the runtime begins. Raises OSError."""
        self._starting.touch()

    def arrived(self) -> None:
        """The start got to its end, whatever that was. Raises OSError."""
        self._starting.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything. Raises OSError."""
        if self.root.exists():
            shutil.rmtree(self.root)

    def remove_unless_used(self) -> None:
        """Delete everything, or leave that to a later start where another program has it in use. Raises OSError."""
        lock = try_lock(self._in_use)
        if lock is None:
            return
        try:
            self.remove()
        finally:
            lock.release()

    def hold(self) -> None:
        """Keep other programs from deleting it as long as this one runs; the system ends that with the process."""
        with suppress(OSError):  # a folder that may not be written is deleted by nobody
            lock = try_lock(self._in_use)
            if lock is not None:
                atexit.register(lock.release)  # a lock that nobody refers to is released

    def remove_later(self) -> None:
        """Have it deleted at the next start: libraries in use cannot be, or must not. Raises OSError."""
        (self.root / "unwanted").touch()

    def is_unwanted(self) -> bool:
        """Whether it is to be removed at the next start."""
        return (self.root / "unwanted").exists()

    def was_offered(self) -> bool:
        """Whether the user was told once that a card could be used."""
        return (self.root / "offered").exists()

    def mark_offered(self) -> None:
        """Remember it; a folder that may not be written forgets it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / "offered").touch()
        except OSError:
            return

    def drop_downloads(self) -> None:
        """Delete wheels, whole and unfinished. Raises OSError."""
        if self.downloads.root.exists():
            shutil.rmtree(self.downloads.root)

    @property
    def _starting(self) -> Path:
        return self.root / "starting"

    @property
    def _in_use(self) -> Path:
        # Beside the folder: Windows deletes no file that is open.
        return self.root.with_name(f"{self.root.name}.lock")


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
