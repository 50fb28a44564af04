"""The file with the corrections learned for each model on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.files import keep
from core.spec import Hardware, Plan, Profile

LEARNED_FILE = "learned.json"
KEPT_MODELS = 64
EQUAL = 1e-6


def model_key(plan: Plan, hardware: Hardware) -> str:
    """Return the key of a profile: model, format, strategy, CPU, card and number of threads."""
    card = next((gpu.name for gpu in hardware.gpus if gpu.index == plan.gpu), "")
    return "|".join((plan.model, plan.format, plan.strategy, hardware.cpu.name, card, str(plan.threads)))


def recall(folder: Path, key: str) -> Profile:
    """Return the corrections learned before; the default profile if there are none."""
    try:
        learned = _read(folder)[key]
        return Profile(**{**learned, "hottest": _rising(learned.get("hottest", ()))})
    except (KeyError, TypeError, ValueError, AttributeError):
        return Profile()


def remember(folder: Path, key: str, profile: Profile) -> None:
    """Save the corrections; if the file cannot be written, they are learned again next time."""
    known = _read(folder)
    known.pop(key, None)
    known[key] = asdict(profile)
    keep(folder / LEARNED_FILE, dict(list(known.items())[-KEPT_MODELS:]))


def _rising(shares: Any) -> tuple[float, ...]:
    """Return the shares if they rise to 1, otherwise (). Raises TypeError, ValueError."""
    found = tuple(float(share) for share in shares)
    rises = all(0 <= low <= high for low, high in pairwise(found))
    return found if found and rises and abs(found[-1] - 1) < EQUAL else ()


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads((folder / LEARNED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
