"""The downloads for a build of torch: its wheel and the libraries of the card's maker, with their sizes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.events import Stop, never
from core.gpu_runtime.wheel_index import Indexes, Wheel
from core.graphics.builds import Build
from core.hub.listing import RemoteFile


@dataclass(frozen=True)
class Needed:
    """The wheels of a runtime; `version` is torch's with the build's tag, as "2.13.0+cu130"."""

    version: str
    build: Build
    wheels: tuple[tuple[Wheel, RemoteFile], ...]

    @property
    def download_bytes(self) -> int:
        """Return the bytes of all wheels."""
        return sum(file.size for _, file in self.wheels)

    @property
    def disk_bytes(self) -> int:
        """Return the estimated bytes on disk once installed."""
        return round(self.download_bytes * self.build.unpacked)

    def address(self, file: RemoteFile) -> str:
        """Return the URL of a file."""
        return next(wheel.url for wheel, known in self.wheels if known == file)


def find_needed(indexes: Indexes, build: Build, torch: str, stop: Stop = never) -> Needed:
    """Resolve the wheels for `torch` (a public version, as "2.13.0"). Raises NoRuntime, NetworkError, Stopped."""
    version = f"{torch}+{build.tag}"
    found: dict[str, Wheel] = {}
    # Breadth first, and the first choice stands: requirements of torch itself, each an exact version, come before those
    # of its requirements.
    waiting = deque([Requirement(f"torch=={version}")])
    seen: set[str] = set()
    while waiting:
        wanted = waiting.popleft()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        wheel = found.setdefault(name, indexes.find(wanted, stop)) if name not in found else found[name]
        waiting += followed(indexes.requirements(wheel, stop), wanted.extras, build.followed)
    sizes = {name: indexes.size(wheel, stop) for name, wheel in found.items()}
    files = ((wheel, RemoteFile(wheel.file, sizes[name], "", wheel.sha256)) for name, wheel in found.items())
    return Needed(version, build, tuple(files))


def followed(requirements: list[Requirement], extras: set[str], names: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield the requirements whose names begin with one of `names` and that apply to this system with these extras."""
    for wanted in requirements:
        if canonicalize_name(wanted.name).startswith(names) and _holds(wanted, extras):
            yield wanted


def _holds(wanted: Requirement, extras: set[str]) -> bool:
    if wanted.marker is None:
        return True
    here = {name: str(value) for name, value in default_environment().items()}
    return any(wanted.marker.evaluate({**here, "extra": extra}) for extra in extras or {""})
