"""Files that the next start reads to save work, and makes again where they are missing or damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from core.whole_file import write_whole


def keep(file: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all. On a full disk or in a folder that may not be written nothing is."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(value))
