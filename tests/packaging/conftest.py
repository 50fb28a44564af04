"""The bundle under test: the folder that HETEGEN_BUNDLE names; these tests are left out where there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

EXE = ".exe" if sys.platform == "win32" else ""


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The folder with the two programs."""
    folder = os.environ.get("HETEGEN_BUNDLE", "")
    if not folder:
        pytest.skip("HETEGEN_BUNDLE names no bundle")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def command_line(bundle: Path) -> Path:
    return bundle / f"hetegen-cli{EXE}"
