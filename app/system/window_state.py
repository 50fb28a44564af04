"""The window's state kept between starts: geometry, folded panes, last model."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from core.files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowState:
    """The state as plain values; invalid stored values count as missing."""

    geometry: str = ""
    sidebar: bool = True
    live: bool = True
    source: str = ""


def read(path: Path) -> WindowState:
    """Read the state, with defaults for missing or invalid values."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return WindowState()
    if not isinstance(stored, dict):
        return WindowState()
    known = {field.name: type(field.default) for field in fields(WindowState)}
    return WindowState(**{name: stored[name] for name, kind in known.items() if isinstance(stored.get(name), kind)})


def write(path: Path, state: WindowState) -> None:
    """Write the state; a failure is only logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(state), indent=2))
    except OSError as error:
        log.warning("The window's place was not stored: %s", error)
