"""What tuning has learned of each model on this machine, kept in one small file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.spec import Hardware, Plan, Profile

LEARNED_FILE = "learned.json"
KEPT_MODELS = 64


def model_key(plan: Plan, hardware: Hardware) -> str:
    """What a profile is true for: the model in this format, on this processor and card, with so many threads."""
    card = next((gpu.name for gpu in hardware.gpus if gpu.index == plan.gpu), "")
    return "|".join((plan.model, plan.format, plan.strategy, hardware.cpu.name, card, str(plan.threads)))


def recall(folder: Path, key: str) -> Profile:
    """The corrections learned before, none if there are none."""
    try:
        return Profile(**_read(folder)[key])
    except (KeyError, TypeError):
        return Profile()


def remember(folder: Path, key: str, profile: Profile) -> None:
    """Keep the corrections; where nothing can be written they are learned again next time."""
    known = _read(folder)
    known.pop(key, None)
    known[key] = asdict(profile)
    kept = dict(list(known.items())[-KEPT_MODELS:])
    temporary = folder / f"{LEARNED_FILE}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        temporary.replace(folder / LEARNED_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads((folder / LEARNED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
