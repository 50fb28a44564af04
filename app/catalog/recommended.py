"""The models that are recommended before anybody has searched: facts in a file, so that they are there offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recommended:
    """One model. `download_bytes` of its safetensors; `config` holds the dimensions that a verdict needs."""

    id: str
    summary: str
    parameters: int
    download_bytes: int
    license: str
    gated: bool
    context: int
    config: Mapping[str, Any]


def recommended(assets: Path) -> tuple[Recommended, ...]:
    """The list, smallest first."""
    entries = json.loads((assets / "recommended-models.json").read_text("utf-8"))
    return tuple(sorted((Recommended(**entry) for entry in entries), key=lambda entry: entry.parameters))
