"""Where the engine finds what ships with it and keeps what it measures."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

HOME_VARIABLE = "HETEGEN_HOME"
SHAPE_PREFIX = "shape:"
"""Before the name of a shape, where a model's name is asked for."""


def builtin_model() -> Path:
    """The folder of the model that ships with the application."""
    return assets() / "builtin-model"


def made_before() -> Path:
    """What a bundle brings along of what `cache_folder` would have after a first start; nothing beside the sources."""
    return assets() / "made-before"


def assets() -> Path:
    """The folder of icons, licences and the built-in model.

    In a bundle it lies where PyInstaller unpacks data, in an installed package inside `core`, in a checkout beside it.
    """
    package = Path(__file__).resolve().parent
    bundle = getattr(sys, "_MEIPASS", None)
    places = (Path(bundle) / "assets",) if bundle else (package / "_assets", package.parent / "assets")
    return next((place for place in places if place.is_dir()), places[-1])


def own_home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The one folder for all that the program keeps, where HETEGEN_HOME names it."""
    home = environ.get(HOME_VARIABLE, "").strip()
    return Path(home).expanduser().absolute() if home else None


def cache_folder() -> Path:
    """Folder of profiles and packed weights, which are made anew when lost; under HETEGEN_HOME where that is set."""
    if home := own_home():
        return home / "cache"
    # Imported late: a machine that only measures the engine need not have it.
    from platformdirs import user_cache_path

    return user_cache_path("HeteGen", appauthor=False)


def log_folder() -> Path:
    """Folder of the logs; under HETEGEN_HOME where that is set."""
    if home := own_home():
        return home / "logs"
    from platformdirs import user_log_path

    return user_log_path("HeteGen", appauthor=False)


def command_log() -> Path:
    """The log of the command line; the window has one of its own beside it."""
    return log_folder() / "commands.log"


def kept_readings() -> Path:
    """The folder for what was read of conversations, one file each; it is made anew when lost."""
    return cache_folder() / "readings"


def kept_reading(conversation: str) -> Path:
    """The file of one conversation, by the id that its owner gave it."""
    return kept_readings() / f"{sha256(conversation.encode()).hexdigest()[:32]}.kv"


def gpu_runtime() -> Path:
    """Folder of the build of torch for cards that a user has fetched; under HETEGEN_HOME where that is set."""
    if home := own_home():
        return home / "data" / "gpu-runtime"
    from platformdirs import user_data_path

    return user_data_path("HeteGen", appauthor=False) / "gpu-runtime"
