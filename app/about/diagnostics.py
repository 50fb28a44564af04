"""A text on this program and computer for bug reports. Contains no chat text, no names and no tokens."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app import NAME, VERSION
from app.monitor.telemetry import Sample
from app.settings.settings import Settings
from core.events import Loaded
from core.units import format_memory

PACKAGES = ("torch", "transformers", "safetensors", "huggingface-hub", "PySide6-Essentials", "psutil", "nvidia-ml-py")
PRIVATE = ("system_prompt", "models_folder", "draft_model", "hf_endpoint")
"""Settings with private values; the text only tells whether they are set."""
LOG_LINES = 80


def diagnostics(settings: Settings, sample: Sample | None, log: Path, facts: Mapping[str, str] | None = None) -> str:
    """Compose the diagnostics. `facts`: further lines, such as the loaded model and its plan."""
    lines = [f"{NAME} {VERSION}", f"{platform.platform()}, Python {platform.python_version()}"]
    lines += [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    lines.append(f"SQLite {sqlite3.sqlite_version}, {'bundle' if getattr(sys, 'frozen', False) else 'from source'}")
    lines += _machine(sample) if sample else []
    lines += [f"{name}: {value}" for name, value in (facts or {}).items()]
    lines += ["", "Settings that are not as delivered:", *_changed(settings)]
    lines += ["", "Last lines of the log:", *tail(log, LOG_LINES)]
    return without_home("\n".join(lines))


def model_facts(model: Loaded | None) -> dict[str, str]:
    """Describe the loaded model and its plan; empty if no model is loaded."""
    if model is None:
        return {}
    return {"Model": f"{model.name}, {model.format_name}, {model.context} tokens", "Plan": model.plan_reason}


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a text file; empty if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, lines)]
    except OSError:
        return []


def without_home(text: str) -> str:
    """Replace the home folder, which contains the user's name, by "~"."""
    home = str(Path.home())
    if len(home) < 3:
        return text
    return text.replace(home.replace("\\", "\\\\"), "~").replace(home, "~").replace(home.replace(os.sep, "/"), "~")


def _machine(sample: Sample) -> list[str]:
    lines = [f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical CPUs"]
    if sample.ram_total and sample.ram_available:
        lines.append(f"RAM {format_memory(sample.ram_total)}, available {format_memory(sample.ram_available)}")
    for card in sample.gpus:
        used = "n/a" if card.vram_used is None else format_memory(card.vram_used)
        total = "n/a" if card.vram_total is None else format_memory(card.vram_total)
        lines.append(f"{card.name}: {used} of {total} in use")
    return lines


def _changed(settings: Settings) -> list[str]:
    delivered = asdict(Settings())
    changed = {name: value for name, value in asdict(settings).items() if value != delivered[name]}
    return [f"{name}: {'(set)' if name in PRIVATE else value}" for name, value in changed.items()] or ["none"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
