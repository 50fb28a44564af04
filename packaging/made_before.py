"""Surveys the built-in guide in advance, into a folder for the bundle: `made_before.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.startup.environment import prepare_environment

prepare_environment()

from core.model.model_source import open_source  # noqa: E402
from core.model.spec_cache import specification  # noqa: E402


def main(folder: Path) -> None:
    guide = open_source(None)
    specification(guide.module, guide.name, folder)
    if not any(folder.rglob("*.json")):
        raise SystemExit(f"Nothing could be written to {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
