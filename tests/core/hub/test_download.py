"""Complete downloads from the fake Hub: the results, and failures of the network, the server or the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import AccessDenied, DiskFull, DownloadFailed, ModelNotFound, NetworkError, UnsupportedModel
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import Downloaded, download
from core.hub.downloader import DownloadOptions
from core.hub.listing import Reference
from core.hub.progress import Pace, Progress
from tests.core.hub.conftest import ID, NEEDED, QUICK, bytes_here
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files, safetensors

SHARD = "model-00002-of-00003.safetensors"
SOME = 200_000
"""Bytes of a download that has begun in earnest, and is far from its end."""
Check = Callable[[], None]
Connect = Callable[..., Client]


def get(client: Client, cache: Cache, manner: DownloadOptions, **more: object) -> Downloaded:
    return download(client, cache, Reference(ID), manner=manner, **more)  # type: ignore[arg-type]


def test_brings_the_needed_files_and_no_others(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    result = get(client, cache, manner)
    whole()
    size = sum(len(files[name]) for name in NEEDED)
    assert (result.bytes, result.downloaded_bytes, result.resumed_bytes) == (size, size, 0)
    assert result.verified
    assert result.complete
    assert result.path == cache.snapshot(ID, hub.repos[ID].sha)
    assert set(hub.sent) == set(NEEDED)


def test_other_programs_find_it(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    stops = iter([False] * 12)
    get(client, cache, manner, stop=lambda: next(stops, True))
    assert scan_cache_dir(cache.root).warnings == []
    result = get(client, cache, manner)
    patterns = ["*.bin", "*.gguf", "onnx/*", "original/*"]
    found = snapshot_download(ID, local_files_only=True, cache_dir=cache.root, ignore_patterns=patterns)
    assert Path(found) == result.path
    scan = scan_cache_dir(cache.root)
    assert scan.warnings == []
    assert scan.incomplete_files == frozenset()
    assert [repo.repo_id for repo in scan.repos] == [ID]
    # What it downloads in addition, it adds to our files.
    online = snapshot_download(ID, cache_dir=cache.root, endpoint=hub.endpoint, allow_patterns=["*.json"])
    assert Path(online) == result.path


def test_what_another_program_downloaded_is_not_fetched_again(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, whole: Check
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(ID, cache_dir=cache.root, endpoint=hub.endpoint, allow_patterns=NEEDED)
    hub.sent.clear()
    result = get(client, cache, manner)
    assert hub.sent == {}
    assert result.verified
    whole()


def test_second_run_fetches_nothing(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    get(client, cache, manner)
    hub.sent.clear()
    result = get(client, cache, manner)
    assert hub.sent == {}
    assert (result.downloaded_bytes, result.verified, result.complete) == (0, True, True)


def test_revision_is_pinned(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    first = hub.repos[ID]
    hub.replace(replace(first, files={**first.files, "config.json": b'{"new": 1}'}))
    result = download(client, cache, Reference(ID, first.sha), manner=manner)
    assert result.revision == first.sha
    assert (result.path / "config.json").read_bytes() == first.files["config.json"]
    assert not (cache.repo(ID) / "refs" / first.sha).exists()
    newer = get(client, cache, manner)
    assert newer.downloaded_bytes == len(b'{"new": 1}')
    assert (cache.repo(ID) / "refs" / "main").read_text() == newer.revision


def test_progress_counts_every_byte_once(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    hub.rate = 2e5
    seen: list[Progress] = []
    threads = set()

    def report(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.get_ident())
        if progress.rate and progress.eta_s is not None:
            hub.rate = None  # soon enough seen, where this thread comes late, too

    result = get(client, cache, manner, report=report)
    assert seen[0].phase == "listing"
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("done", result.bytes, result.bytes)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert any(progress.rate and progress.eta_s is not None for progress in seen)
    assert {file.state for file in seen[-1].files} == {"done"}
    assert threads == {threading.get_ident()}


def test_flipped_byte_is_caught_and_only_that_file_fetched_again(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    hub.faults = [Fault(SHARD, "flip", at=70_000)]
    get(client, cache, manner)
    whole()
    assert hub.bytes_sent(SHARD) == 2 * len(files[SHARD])
    assert all(hub.bytes_sent(name) == len(files[name]) for name in NEEDED if name != SHARD)


def test_damage_that_stays_is_said(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    hub.faults = [Fault(SHARD, "flip", at=5, times=9)]
    with pytest.raises(DownloadFailed, match="arrived damaged"):
        get(client, cache, manner)
    assert not (cache.snapshot(ID, hub.repos[ID].sha) / "config.json").exists()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(SHARD, "status", code=503, times=3),
        Fault(SHARD, "status", code=429, times=2, headers={"Retry-After": "0"}),
        Fault(SHARD, "status", code=502, where="files"),
        Fault(SHARD, "status", code=403, where="files"),
        Fault(SHARD, "html", times=2),
        Fault(SHARD, "length", by=100, times=2),
        Fault(SHARD, "length", by=-100, times=2),
        Fault(SHARD, "stall", at=100_000, seconds=30),
        Fault(SHARD, "stall", at=0, seconds=30),
        Fault("api/models", "status", code=503, times=2),
        Fault("api/models", "status", code=429, times=2, headers={"RateLimit": '"api";r=0;t=0'}),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.code}-{fault.by or fault.at}",
)
def test_what_passes_is_waited_for(
    connect: Connect,
    hub: Double,
    cache: Cache,
    manner: DownloadOptions,
    files: dict[str, bytes],
    whole: Check,
    fault: Fault,
) -> None:
    hub.faults = [fault]
    get(patient(connect, hub, fault), cache, manner)
    whole()
    assert hub.faults == []
    # The body of a response that is refused for its length is in transit before the connection is closed.
    assert hub.bytes_sent(SHARD) == len(files[SHARD]) or fault.kind == "length"


def patient(connect: Connect, hub: Double, fault: Fault) -> Client:
    """Return a client that gives up soon only if the server will say nothing; a busy one may be late."""
    return connect(hub.endpoint, timeout_s=1.0) if fault.kind == "stall" else connect(hub.endpoint)


def test_a_server_that_asks_for_patience_gets_it(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, whole: Check
) -> None:
    hub.faults = [Fault(SHARD, "status", code=429, headers={"Retry-After": "1"})]
    started = time.monotonic()
    notes: set[str] = set()
    get(client, cache, manner, report=lambda progress: notes.add(progress.note))
    assert time.monotonic() - started >= 1
    assert any("asks to slow down. Trying again in 1 s." in note for note in notes)
    whole()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(SHARD, "status", code=503, times=99), "does not work at the moment. It answered 503. Try again later."),
        (Fault(SHARD, "status", code=429, headers={"Retry-After": "9999"}), "asks to slow down"),
        (Fault(SHARD, "stall", times=99, seconds=30), "does not answer. It was silent for too long."),
        (Fault(SHARD, "html", times=99), "sign-in page"),
        (Fault("api/models", "html", times=99), "sign-in page"),
        (Fault(SHARD, "cut", times=99), "The connection to 127.0.0.1"),
        (Fault(SHARD, "nonsense", times=99), "has the wrong length on the server."),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_what_does_not_pass_is_said(
    connect: Connect, hub: Double, cache: Cache, manner: DownloadOptions, fault: Fault, words: str
) -> None:
    hub.faults = [fault]
    with pytest.raises((NetworkError, DownloadFailed)) as caught:
        get(patient(connect, hub, fault), cache, manner)
    assert words in str(caught.value)
    assert not list((cache.repo(ID) / "snapshots").glob("*/*"))


def test_range_refused_starts_from_the_beginning(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    hub.faults = [Fault(SHARD, "cut", at=300_000), Fault(SHARD, "no_range", where="files")]
    get(client, cache, manner)
    whole()
    assert hub.sent[SHARD] == [(0, 300_000), (0, len(files[SHARD]))]


def test_cuts_without_ranges_do_not_go_on_for_ever(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions
) -> None:
    hub.faults = [Fault(SHARD, "cut", at=300_000, times=99), Fault(SHARD, "no_range", times=99)]
    with pytest.raises(NetworkError, match="was cut off"):
        get(client, cache, manner)
    assert len(hub.sent[SHARD]) <= QUICK.limit + 2


@pytest.mark.parametrize("change", ["new commit", "same commit"])
def test_file_changed_in_mid_download_restarts_that_file(
    hub: Double,
    client: Client,
    cache: Cache,
    manner: DownloadOptions,
    files: dict[str, bytes],
    whole: Check,
    change: str,
) -> None:
    repo = hub.repos[ID]
    files[SHARD] = safetensors({"model.layers.1.mlp.up_proj.weight": (512, 512)}, seed=77)
    newer = replace(repo, files={**repo.files, SHARD: files[SHARD]})

    def act() -> None:
        if change == "same commit":
            hub.force(ID, SHARD, files[SHARD])
        else:
            hub.replace(newer)
            # The old commit is gone, too, as if the repository had been deleted and created anew.
            hub.old[ID, repo.sha] = newer

    hub.faults = [Fault(SHARD, "run", at=200_000, action=act, where="files")]
    get(client, cache, manner)
    whole()
    assert (hub.sent[SHARD][0], hub.sent[SHARD][-1]) == ((0, 200_000), (0, len(files[SHARD])))


def test_ever_changing_file_is_said(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    original = hub.find

    def other_each_time(id: str, revision: str) -> Repo | None:
        repo = original(id, revision)
        if repo and len(hub.paths()) > 2:
            return replace(repo, files={**repo.files, "tokenizer.json": str(len(hub.seen)).encode()})
        return repo

    hub.find = other_each_time  # type: ignore[method-assign]
    with pytest.raises((DownloadFailed, ModelNotFound, NetworkError)):
        get(client, cache, manner)


def test_disk_too_small_is_said_before_anything_is_fetched(hub: Double, client: Client, cache: Cache) -> None:
    with pytest.raises(DiskFull, match="does not fit on the disk") as caught:
        get(client, cache, DownloadOptions(Pace(), QUICK, reserve_bytes=1 << 60))
    assert "GB are missing" in caught.value.why
    assert hub.sent == {}


def test_disk_that_fills_up_pauses_and_resumes(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    resource = pytest.importorskip("resource")
    limit = 300_000
    script = (
        "import resource, sys; from pathlib import Path; from core.hub.client import Client;"
        "from core.hub.cache_layout import Cache; from core.hub.listing import Reference;"
        "from core.hub.download import download; from core.errors import DiskFull\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"try: download(Client({hub.endpoint!r}), Cache(Path({str(cache.root)!r})), Reference({ID!r}))\n"
        "except DiskFull as error: print(error); sys.exit(3)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 3, run.stderr
    assert "is full. What was downloaded is kept. Make room, then resume the download." in run.stdout
    sizes = [path.stat().st_size for path in cache.partials(ID).values()]
    assert limit in sizes
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    hub.sent.clear()
    result = get(client, cache, manner)
    whole()
    assert result.resumed_bytes >= limit
    assert all(start == 0 or start == limit or start in sizes for spans in hub.sent.values() for start, _ in spans)
    assert result.downloaded_bytes + result.resumed_bytes == result.bytes


def test_disk_getting_low_during_a_download_pauses(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, monkeypatch: pytest.MonkeyPatch, whole: Check
) -> None:
    import shutil

    hub.rate = 1e6
    real = shutil.disk_usage

    def usage(path: object) -> object:
        found = real(path)  # type: ignore[arg-type]
        return found if bytes_here(cache) < SOME else found._replace(free=1000)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage)
        with pytest.raises(DiskFull, match="nearly full"):
            get(client, cache, DownloadOptions(Pace(), QUICK, reserve_bytes=1 << 20))
    hub.rate = None
    result = get(client, cache, manner)
    assert result.resumed_bytes > 0
    whole()


NOBODY = 65534


@pytest.fixture
def cache_for_all() -> Iterator[Cache]:
    """Provide a cache outside of pytest's folder, which the next pytest that starts takes back from other users."""
    with tempfile.TemporaryDirectory() as folder:
        yield Cache(Path(folder) / "hub")


@pytest.fixture
def read_only(cache_for_all: Cache) -> Iterator[Callable[[], None]]:
    """Make the cache read-only until the end of the test, also for root, by changing to the user nobody."""

    cache = cache_for_all

    def set_modes(mode: int) -> None:
        for path in [cache.root, *(path for path in cache.root.rglob("*") if path.is_dir())]:
            path.chmod(mode)

    def forbid() -> None:
        set_modes(0o555)
        if os.geteuid() == 0:
            for parent in cache.root.parents:
                parent.chmod(parent.stat().st_mode | 0o555)
            os.seteuid(NOBODY)

    is_root = os.geteuid() == 0
    yield forbid
    if is_root:
        os.seteuid(0)
    set_modes(0o755)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no read-only folders")
def test_read_only_cache_is_said(
    hub: Double, client: Client, cache_for_all: Cache, manner: DownloadOptions, read_only: Callable[[], None]
) -> None:
    cache_for_all.root.mkdir(parents=True)
    read_only()
    with pytest.raises(DownloadFailed, match="may only be read") as caught:
        get(client, cache_for_all, manner)
    assert caught.value.next_step == "Choose another folder for models."


@pytest.mark.skipif(os.name == "nt", reason="Windows has no read-only folders")
def test_whole_model_in_a_read_only_cache_is_fine(
    hub: Double, client: Client, cache_for_all: Cache, manner: DownloadOptions, read_only: Callable[[], None]
) -> None:
    get(client, cache_for_all, manner)
    read_only()
    result = get(client, cache_for_all, manner)
    assert (result.complete, result.downloaded_bytes) == (True, 0)


def test_unwritable_cache_is_said(hub: Double, client: Client, tmp_path: Path, manner: DownloadOptions) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadFailed, match="cannot be written to"):
        get(client, Cache(tmp_path / "file" / "hub"), manner)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:x", "./x", "a//x", "x\n"])
def test_names_that_lead_out_of_the_folder_are_refused(
    client: Client, hub: Double, cache: Cache, manner: DownloadOptions, name: str
) -> None:
    hub.replace(replace(hub.repos[ID], files={**hub.repos[ID].files, name: b"x"}))
    with pytest.raises(DownloadFailed, match="was refused"):
        get(client, cache, manner)
    assert not cache.repo(ID).exists()
    assert hub.sent == {}


def test_index_cannot_name_files_outside(hub: Double, client: Client, cache: Cache, manner: DownloadOptions) -> None:
    index = b'{"weight_map": {"x": "../../../../x.safetensors"}}'
    hub.replace(replace(hub.repos[ID], files={**hub.repos[ID].files, "model.safetensors.index.json": index}))
    with pytest.raises(Exception, match="names files outside its folder"):
        get(client, cache, manner)


def test_two_hundred_files(client: Client, hub: Double, cache: Cache, manner: DownloadOptions) -> None:
    files = model_files(shards=193, rows=1)
    hub.replace(Repo(ID, files))
    result = get(client, cache, manner)
    assert len(list(result.path.iterdir())) == 200 - 1
    assert result.verified


def test_huge_listing(connect: Connect, cache: Cache, files: dict[str, bytes], manner: DownloadOptions) -> None:
    many = {f"checkpoints/{number}/optimizer.pt": b"" for number in range(20_000)}
    with Double(Repo(ID, {**many, **files}), tree_page=1000) as hub:
        result = get(connect(hub.endpoint), cache, manner)
        assert sum("tree" in path for path in hub.paths()) == 21
    assert sorted(path.name for path in result.path.iterdir()) == NEEDED


def test_weights_that_may_hold_code_are_refused(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions
) -> None:
    hub.replace(Repo(ID, {"config.json": b"{}", "pytorch_model.bin": b"x"}))
    with pytest.raises(UnsupportedModel, match="hidden code"):
        get(client, cache, manner)


def test_gated_model_needs_a_token(
    connect: Connect, cache: Cache, files: dict[str, bytes], manner: DownloadOptions
) -> None:
    with Double(Repo(ID, files, gated=True, allowed=("hf_good",))) as hub:
        with pytest.raises(AccessDenied, match=f"Accept the licence at {hub.endpoint}/{ID}, then enter your token"):
            get(connect(hub.endpoint), cache, manner)
        with pytest.raises(AccessDenied, match="has not been given access"):
            get(connect(hub.endpoint, "hf_other"), cache, manner)
        get(connect(hub.endpoint, "hf_good"), cache, manner)
        large = [seen for seen in hub.seen if seen.host == "files"]
        assert len(large) == 3
        assert not any("hf_good" in str(seen.headers) for seen in large)
        assert all("authorization" not in seen.headers for seen in large)


def test_stop_pauses_and_keeps_every_byte(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes], whole: Check
) -> None:
    hub.rate = 1e6
    paused = get(client, cache, manner, stop=lambda: bytes_here(cache) > SOME)
    assert not paused.complete
    assert not paused.path.exists()
    assert 0 < paused.downloaded_bytes < paused.bytes
    hub.rate = None
    hub.sent.clear()
    result = get(client, cache, manner)
    assert result.resumed_bytes == paused.downloaded_bytes + paused.resumed_bytes
    assert result.downloaded_bytes + result.resumed_bytes == result.bytes
    whole()


def test_stop_ends_a_silent_connection_at_once(
    connect: Connect, hub: Double, client: Client, cache: Cache, manner: DownloadOptions
) -> None:
    hub.faults = [Fault(".safetensors", "stall", times=3, at=1000, seconds=30, where="files")]
    asked, begun = threading.Event(), time.monotonic()
    timer = threading.Timer(0.5, asked.set)
    timer.start()
    result = get(connect(hub.endpoint, timeout_s=30), cache, manner, stop=asked.is_set)
    assert not result.complete
    assert time.monotonic() - begun < 15, "well before the connection gives up"
    timer.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have no priority of their own there")
def test_a_program_of_a_low_priority_stays_there(
    client: Client, cache: Cache, manner: DownloadOptions, whole: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users may lower the priority of their programs, but not raise it."""

    def refused(*_: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    monkeypatch.setattr(os, "setpriority", refused)
    get(client, cache, manner)
    whole()


def test_rate_limit_is_shared(hub: Double, client: Client, cache: Cache, files: dict[str, bytes]) -> None:
    size = sum(len(files[name]) for name in NEEDED)
    started = time.monotonic()
    get(client, cache, DownloadOptions(Pace(size / 1.0), QUICK, reserve_bytes=0))
    assert time.monotonic() - started > 0.7


def test_without_symlinks(
    hub: Double, client: Client, tmp_path: Path, manner: DownloadOptions, files: dict[str, bytes]
) -> None:
    cache = Cache(tmp_path / "hub", symlinks=False)
    result = get(client, cache, manner)
    assert all(not path.is_symlink() and path.read_bytes() == files[path.name] for path in result.path.iterdir())
    hub.sent.clear()
    assert get(client, cache, manner).downloaded_bytes == 0
    assert hub.sent == {}


def test_without_links_of_any_kind(
    hub: Double,
    client: Client,
    cache: Cache,
    manner: DownloadOptions,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    files["vocab.json"] = files["tokenizer_config.json"]
    hub.replace(replace(hub.repos[ID], files=files))
    result = get(client, cache, manner)
    assert all(path.read_bytes() == files[path.name] for path in result.path.iterdir())
    blobs = cache.repo(ID) / "blobs"
    assert list(blobs.iterdir()) == []
    hub.sent.clear()
    again = get(client, cache, manner)
    assert (again.downloaded_bytes, again.verified, hub.sent) == (0, True, {})
