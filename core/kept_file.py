"""Files that the next start reads to save work, and makes again where they are missing or damaged."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path


def keep(file: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all. On a full disk or in a folder that may not be written nothing is."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
