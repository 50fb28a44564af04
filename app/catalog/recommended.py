"""The recommended models. Their facts are in a file of the program, so the list works offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recommended:
    """One recommended model. `download_bytes`: size of its safetensors; `config`: the dimensions for a verdict."""

    id: str
    summary: str
    parameters: int
    download_bytes: int
    license: str
    gated: bool
    context: int
    config: Mapping[str, Any]


def recommended(assets: Path) -> tuple[Recommended, ...]:
    """Read the list, smallest model first."""
    entries = json.loads((assets / "recommended-models.json").read_text("utf-8"))
    return tuple(sorted((Recommended(**entry) for entry in entries), key=lambda entry: entry.parameters))
