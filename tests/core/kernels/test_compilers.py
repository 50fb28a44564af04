"""Every C compiler of this machine takes the kernels' sources, whichever a user has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[3] / "core" / "kernels" / "native").glob("*.c"))
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_sources_are_accepted(compiler: str) -> None:
    assert SOURCES
    options = ["-std=gnu11", "-fopenmp-simd", "-fsyntax-only"]
    done = subprocess.run([compiler, *options, *SOURCES], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
