"""Interrupted and killed downloads: every byte that arrived is kept, and no wrong file is ever shown as complete.

HETEGEN_MANY=1 runs many interruptions (50 cuts, 20 kills) instead of a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import HeteGenError
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.installed import installed
from core.hub.listing import Reference
from tests.core.hub.conftest import ID, NEEDED, bytes_here
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files

MANY = bool(os.environ.get("HETEGEN_MANY"))
CUTS, KILLS = (50, 20) if MANY else (10, 4)
BLOCK = 1 << 20
SCRIPT = """
import sys
from pathlib import Path
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.cache_layout import Cache
from core.hub.listing import Reference
from core.hub.progress import Pace

manner = DownloadOptions(Pace(), reserve_bytes=0)
with Client(sys.argv[1]) as client:
    result = download(client, Cache(Path(sys.argv[2])), Reference(sys.argv[3]), manner=manner)
print(result.downloaded_bytes, result.resumed_bytes, result.bytes, result.verified)
"""
Check = Callable[[], None]


def start(hub: Double, cache: Cache) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, hub.endpoint, str(cache.root), ID]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, int, int, bool]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    fetched, resumed, size, verified = out.split()
    return int(fetched), int(resumed), int(size), verified == "True"


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert happened()


def test_cut_at_random_bytes(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    drawn = random.Random(7)
    shards = [name for name in NEEDED if name.endswith(".safetensors")]
    hub.faults = [Fault(drawn.choice(shards), "cut", at=drawn.randrange(20_000), where="files") for _ in range(CUTS)]
    result = download(client, cache, Reference(ID), manner=manner)
    whole()
    assert hub.faults == []
    assert sum(len(spans) for name, spans in hub.sent.items() if name in shards) == CUTS + len(shards)
    # Each request starts at the byte where the previous one was cut: nothing is transferred twice.
    for name in shards:
        assert all(before[1] == after[0] for before, after in zip(hub.sent[name], hub.sent[name][1:], strict=False))
    assert result.downloaded_bytes == result.bytes


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_at_random_moments(cache: Cache, manner: DownloadOptions, connect: Callable[..., Client]) -> None:
    files = model_files(rows=4096)
    size = sum(len(files[name]) for name in NEEDED)
    drawn = random.Random(11)
    with Double(Repo(ID, files)) as hub:
        hub.rate = size / KILLS / 0.4 / 12  # far from whole after all the kills, also where they come late
        kept = 0
        for kill in range(KILLS):
            asked = len(hub.seen)
            process = start(hub, cache)
            # From its first request on: the time that Python takes to start is irrelevant.
            wait_for(lambda asked=asked: len(hub.seen) > asked)
            if kill == 0:
                wait_for(lambda: bytes_here(cache) > 0)
            time.sleep(drawn.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert bytes_here(cache) >= kept
            kept = bytes_here(cache)
            assert not any(model.complete for model in installed(cache))
            assert not list(cache.repo(ID).glob("snapshots/*/*"))
        assert 0 < kept < size
        hub.rate = None
        fetched, resumed, total, verified = finish(start(hub, cache))
        asked_twice = sum(hub.bytes_sent(name) for name in NEEDED) - size
    assert (resumed, fetched, total, verified) == (kept, size - kept, size, True)
    # Data in transit at a kill is lost: at most the content of four connections' socket buffers.
    assert asked_twice <= KILLS * 4 * (BLOCK + (4 << 20))
    (model,) = installed(cache)
    assert model.complete
    assert all((model.path / name).read_bytes() == files[name] for name in NEEDED)


def test_two_programs_at_once(cache: Cache) -> None:
    files = model_files(rows=2048)
    with Double(Repo(ID, files)) as hub:
        hub.rate = 4e6
        both = [start(hub, cache), start(hub, cache)]
        results = [finish(process) for process in both]
        size = sum(len(files[name]) for name in NEEDED)
        assert sum(hub.bytes_sent(name) for name in NEEDED) == size
    assert sum(fetched for fetched, *_ in results) == size
    assert all(verified for *_, verified in results)
    (model,) = installed(cache)
    assert model.complete
    assert all((model.path / name).read_bytes() == files[name] for name in NEEDED)


def test_another_program_of_huggingface_at_once(cache: Cache, files: dict[str, bytes]) -> None:
    """Each respects the other's lock, so that the file is transferred once."""
    script = (
        "import sys; from huggingface_hub import hf_hub_download\n"
        "hf_hub_download(sys.argv[3], 'model-00001-of-00003.safetensors', endpoint=sys.argv[1], cache_dir=sys.argv[2])"
    )
    with Double(Repo(ID, files)) as hub:
        hub.rate = 5e5
        command = [sys.executable, "-c", script, hub.endpoint, str(cache.root), ID]
        environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        wait_for(lambda: "files" in {seen.host for seen in hub.seen})
        ours = start(hub, cache)
        finish(ours)
        _, err = other.communicate(timeout=120)
        assert other.returncode == 0, err
        assert hub.bytes_sent("model-00001-of-00003.safetensors") == len(files["model-00001-of-00003.safetensors"])


def test_unfinished_is_never_found_as_a_model(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes]
) -> None:
    hub.faults = [Fault("00003", "cut", at=400_000, where="files"), Fault("00003", "cut", times=99)]
    with pytest.raises(HeteGenError):
        download(client, cache, Reference(ID), manner=manner)
    (model,) = installed(cache)
    assert not model.complete
    assert model.bytes < model.total == sum(len(files[name]) for name in NEEDED)


def test_longer_rest_than_the_file_is_thrown_away(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    import hashlib

    name = "model-00001-of-00003.safetensors"
    rest = cache.partial(ID, hashlib.sha256(files[name]).hexdigest())
    rest.parent.mkdir(parents=True)
    rest.write_bytes(bytes(len(files[name]) + 1))
    download(client, cache, Reference(ID), manner=manner)
    whole()


def test_damaged_rest_is_fetched_again(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    """After a power failure a partial file may contain zeros, which its checksum reveals."""
    import hashlib

    name = "model-00001-of-00003.safetensors"
    rest = cache.partial(ID, hashlib.sha256(files[name]).hexdigest())
    rest.parent.mkdir(parents=True)
    rest.write_bytes(bytes(1000))
    download(client, cache, Reference(ID), manner=manner)
    whole()
    assert hub.sent[name] == [(1000, len(files[name])), (0, len(files[name]))]


def test_rests_of_other_versions_are_cleared(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, whole: Check
) -> None:
    rest: Path = cache.partial(ID, "0" * 64)
    rest.parent.mkdir(parents=True)
    rest.write_bytes(b"old")
    download(client, cache, Reference(ID), manner=manner)
    whole()
