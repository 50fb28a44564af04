"""Paths of the engine's assets and of its caches, logs and data."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

HOME_VARIABLE = "HETEGEN_HOME"
SHAPE_PREFIX = "shape:"
"""The prefix of a shape's name where a model name is expected."""


def builtin_model() -> Path:
    """Return the folder of the built-in model."""
    return assets() / "builtin-model"


def made_before() -> Path:
    """Return the folder of a bundle's prebuilt cache files, equivalent to `cache_folder` after a first start."""
    return assets() / "made-before"


def assets() -> Path:
    """Return the folder of icons, licences and the built-in model.

    In a bundle it is where PyInstaller unpacks data, in an installed package inside `core`, in a checkout beside it.
    """
    package = Path(__file__).resolve().parent
    bundle = getattr(sys, "_MEIPASS", None)
    places = (Path(bundle) / "assets",) if bundle else (package / "_assets", package.parent / "assets")
    return next((place for place in places if place.is_dir()), places[-1])


def own_home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder named by HETEGEN_HOME, which then holds all of the program's files; None if it is not set."""
    home = environ.get(HOME_VARIABLE, "").strip()
    return Path(home).expanduser().absolute() if home else None


def cache_folder() -> Path:
    """Return the folder of profiles and packed weights, which can be recreated; under HETEGEN_HOME if that is set."""
    if home := own_home():
        return home / "cache"
    # Imported late: a machine that only benchmarks the engine need not have it.
    from platformdirs import user_cache_path

    return user_cache_path("HeteGen", appauthor=False)


def log_folder() -> Path:
    """Return the folder of the logs; under HETEGEN_HOME if that is set."""
    if home := own_home():
        return home / "logs"
    from platformdirs import user_log_path

    return user_log_path("HeteGen", appauthor=False)


def command_log() -> Path:
    """Return the log file of the command line; the window has its own beside it."""
    return log_folder() / "commands.log"


def kept_readings() -> Path:
    """Return the folder of stored KV caches, one file per conversation; it can be recreated."""
    return cache_folder() / "readings"


def kept_reading(conversation: str) -> Path:
    """Return the KV cache file of a conversation, by the id that its owner gave it."""
    return kept_readings() / f"{sha256(conversation.encode()).hexdigest()[:32]}.kv"


def gpu_runtime() -> Path:
    """Return the folder of a downloaded GPU build of torch; under HETEGEN_HOME if that is set."""
    if home := own_home():
        return home / "data" / "gpu-runtime"
    from platformdirs import user_data_path

    return user_data_path("HeteGen", appauthor=False) / "gpu-runtime"
