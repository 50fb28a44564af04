"""The bundle under test: the folder in HETEGEN_BUNDLE. Without it these tests are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from core.gpu_runtime.trial import ARGUMENT

EXE = ".exe" if sys.platform == "win32" else ""


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The folder with the two programs."""
    folder = os.environ.get("HETEGEN_BUNDLE", "")
    if not folder:
        pytest.skip("HETEGEN_BUNDLE names no bundle")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def contents(bundle: Path) -> Path:
    """The folder with the libraries: on macOS they are beside the programs' folder."""
    return bundle.parent if bundle.name == "MacOS" else bundle


@pytest.fixture(scope="session")
def command_line(bundle: Path) -> Path:
    return bundle / f"hetegen-cli{EXE}"


@pytest.fixture
def told_inside(command_line: Path, tmp_path: Path) -> Callable[..., str]:
    """Run lines of Python in the bundle, which has no interpreter to call; return what they assign to `told`.

    The lines are in place of a GPU runtime, whose failure the bundle reports.
    """

    def run(lines: str, *, around: Sequence[str] = (), limit_s: float = 120) -> str:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(f"{lines}\nraise ImportError(told)\n", "utf-8")
        done = subprocess.run(
            [*around, command_line, ARGUMENT, tmp_path], capture_output=True, encoding="utf-8", check=True,
            timeout=limit_s,
        )  # fmt: skip
        return str(json.loads(done.stdout.splitlines()[-1])["why"]).removeprefix("ImportError: ")

    return run
