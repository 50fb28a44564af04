"""Stores how often each expert of a model was used, for its next load: a small file per model.

Damaged files, and those of model files that have changed since, are ignored; counting then starts anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.files import keep
from core.weights.packed_cache import cache_key

FOLDER, VERSION = "experts", 1
KEPT_MODELS = 64
MOST_USES = 1e9
"""An upper bound of valid counts, which are halved from time to time."""


def recall_uses(folder: Path, files: Sequence[Path]) -> dict[str, list[float]]:
    """Return use counts by expert, by module path; empty if nothing is known of the model in these files."""
    if not files:
        return {}
    try:
        kept: dict[str, Any] = json.loads(_file(folder, files).read_text(encoding="utf-8"))
        if kept["version"] != VERSION:
            return {}
        return {str(path): [_use(value) for value in uses] for path, uses in kept["uses"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_uses(folder: Path, files: Sequence[Path], uses: Mapping[str, Sequence[float]]) -> None:
    """Store the counts for the next load. Does nothing for random weights or a read-only folder."""
    if not files or not uses:
        return
    with suppress(OSError):
        rounded = {path: [round(use, 1) for use in counts] for path, counts in uses.items()}
        keep(_file(folder, files), {"version": VERSION, "uses": rounded})
        _forget_oldest(folder / FOLDER)


def _use(value: float) -> float:
    """Validate a count. Raises ValueError for an invalid one, TypeError for anything but a number."""
    if not math.isfinite(value) or not 0 <= value <= MOST_USES:
        raise ValueError(f"an expert was used {value} times")
    return float(value)


def _file(folder: Path, files: Sequence[Path]) -> Path:
    """Return the path of a model's counts. Raises OSError if the model's files are gone."""
    return folder / FOLDER / f"{cache_key(files, FOLDER)}.json"


def _forget_oldest(folder: Path) -> None:
    by_age = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in by_age[KEPT_MODELS:]:
        file.unlink(missing_ok=True)
