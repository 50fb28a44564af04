"""Fixtures of the Hub's tests: a cache in a temporary folder, and retries within milliseconds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.commands.models import add_commands
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.downloader import DownloadOptions
from core.hub.progress import Pace
from core.hub.retry import Retries
from tests.core.hub.fake_hub import Double, Repo, model_files

ID = "org/model"
QUICK = Retries(limit=4, first_s=0.005, longest_s=0.02)


@pytest.fixture(autouse=True)
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "hub")


def bytes_here(cache: Cache) -> int:
    """Return the bytes of complete and partial files, which a download may rename meanwhile."""
    return sum(size_of(path) for path in (cache.repo(ID) / "blobs").glob("*"))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


@pytest.fixture
def symlinks(tmp_path: Path) -> None:
    """Skip the test where the user may not make symbolic links."""
    try:
        (tmp_path / "link").symlink_to(tmp_path)
    except OSError:
        pytest.skip("Windows allows symbolic links to developers only")


@pytest.fixture
def files() -> dict[str, bytes]:
    return model_files(rows=512)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Double]:
    with Double(Repo(ID, dict(files))) as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Make fast clients that are closed at the end of the test."""
    made: list[Client] = []

    def make(endpoint: str, token: str = "", timeout_s: float = 30, **more: Any) -> Client:
        made.append(Client(endpoint, token, timeout_s=timeout_s, retries=QUICK, **more))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(hub: Double, connect: Callable[..., Client]) -> Client:
    return connect(hub.endpoint)


@pytest.fixture
def manner() -> DownloadOptions:
    return DownloadOptions(Pace(), QUICK, reserve_bytes=0)


@pytest.fixture
def whole(cache: Cache, files: dict[str, bytes]) -> Callable[[], None]:
    """Assert that the model is complete and correct, and that nothing else is in the cache."""

    def check() -> None:
        repo = cache.repo(ID)
        (snapshot,) = (repo / "snapshots").iterdir()
        names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
        assert names == NEEDED
        assert all((snapshot / name).read_bytes() == files[name] for name in names)
        assert not list((repo / "blobs").glob("*.incomplete"))
        assert (repo / "refs" / "main").read_text() == snapshot.name

    return check


NEEDED = sorted(
    [
        "README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
)  # fmt: skip


@pytest.fixture
def here(hub: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache of its own, and the fake Hub."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def run(*words: str) -> Any:
    """Run a `models` command with these arguments; return its exit status."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    args = parser.parse_args(words)
    return args.run(args)
