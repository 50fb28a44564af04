"""Setup of every test: no window system, no network access by libraries, temporary folders."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from core.startup.environment import prepare_environment

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# A user's own proxies, tokens and settings of Hugging Face's library, which reads them when it is imported.
for name in [name for name in os.environ if name.upper().endswith("_PROXY") or name.startswith("HF_")]:
    del os.environ[name]
prepare_environment()
# Durations mean nothing here: the machine may be busy, and the first text waits for a table. The examples are the same
# in each run, so that none fails by chance; with HETEGEN_RANDOM=1 they are others each time.
hypothesis.settings.register_profile(
    "any pace",
    deadline=None,
    derandomize=not os.environ.get("HETEGEN_RANDOM"),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any pace")


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the path of a new folder each time. pytest would look through thousands of folders for the next number."""
    everyone = tmp_path_factory.mktemp("homes")
    return (everyone / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_folders(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from reading or writing the user's own files."""
    home = next(_homes)
    home.mkdir()
    monkeypatch.setenv("HETEGEN_HOME", str(home / "hetegen"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))


@pytest.fixture(scope="module", autouse=True)
def _earlier_objects_stay() -> None:
    """Exempt what imports and earlier files left from garbage collection. Some hundred tests and engines collect, each
    time through torch's and transformers' objects, which would take longer than those tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return Path(__file__).resolve().parent.parent
