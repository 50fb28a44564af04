"""The layers are tested, not promised: who may import whom, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_import_contracts_are_kept(repository: Path) -> None:
    # In a process of its own: import-linter's logging disables all loggers that exist.
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', cache_dir=None))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name", ["core", "core.errors", "core.events", "core.spec", "core.planning.planner", "core.__main__"]
)
def test_light_modules_load_no_torch(name: str, repository: Path) -> None:
    """The window and `--help` appear before torch, whose import takes seconds."""
    assert not _imported_by(name, repository) & {"torch", "transformers", "PySide6", "numpy"}


def test_the_engine_loads_no_window_system(repository: Path) -> None:
    loaded = _imported_by("core.engine", repository)
    assert "torch" in loaded
    assert not loaded & {"PySide6", "shiboken6", "app"}


def test_the_window_is_built_without_torch(repository: Path) -> None:
    """Torch belongs to the worker thread, after the window shows; the others to features that few starts use."""
    late = {"torch", "transformers", "asyncio", "packaging", "starlette", "uvicorn", "mcp"}
    assert not _imported_by("app.application", repository) & late


def _imported_by(module: str, repository: Path) -> set[str]:
    """Return the top-level packages in memory after `import module` in a fresh interpreter."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())
