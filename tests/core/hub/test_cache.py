"""Models on this disk: listing, finding, checking, repairing and removing them, whoever downloaded them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BadRequest, ModelNotFound, ModelUnreadable
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.file_lock import try_lock
from core.hub.folders import Folders
from core.hub.installed import installed, resolve_model, revisions, verify
from core.hub.listing import Reference
from core.hub.removal import discard, remove
from tests.core.hub.conftest import ID, NEEDED
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files

Check = Callable[[], None]
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def here(client: Client, cache: Cache, manner: DownloadOptions) -> Path:
    """Provide the downloaded model."""
    return download(client, cache, Reference(ID), manner=manner).path


@pytest.fixture
def by_others(hub: Double, cache: Cache) -> Path:
    """Provide the model as downloaded by huggingface_hub."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(ID, cache_dir=cache.root, endpoint=hub.endpoint, allow_patterns=NEEDED))


def test_whole_model_is_listed_and_found(here: Path, cache: Cache, files: dict[str, bytes]) -> None:
    (model,) = installed(cache)
    size = sum(len(files[name]) for name in NEEDED)
    assert (model.id, model.path, model.bytes, model.total, model.complete) == (ID, here, size, size, True)
    assert model.last_used is None
    assert resolve_model(ID, cache) == here
    assert resolve_model(f"{ID}@{model.revision}", cache) == here
    assert installed(cache)[0].last_used is not None


@pytest.mark.parametrize("gone", ["removed", "written anew"])
def test_models_are_listed_while_one_changes(
    here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    iterdir, seen = Path.iterdir, list[Path]()

    def late(folder: Path) -> Iterator[Path]:
        if folder.name == "snapshots" and not seen:
            seen.append(folder)
            if gone == "removed":
                remove(cache, ID)
            else:
                raise FileNotFoundError  # as of a folder that was there a moment ago, and is again
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", late)
    assert [model.id for model in installed(cache)] == ([] if gone == "removed" else [ID])
    assert seen


def test_models_of_others_are_listed_and_found(by_others: Path, cache: Cache) -> None:
    (model,) = installed(cache)
    assert (model.id, model.path, model.complete) == (ID, by_others, True)
    shutil.rmtree(cache.repo(ID) / "trees")
    (model,) = installed(cache)
    assert model.complete
    assert resolve_model(ID, cache) == by_others


@pytest.mark.parametrize("listed", [True, False])
def test_partial_models_of_others_are_not_whole(by_others: Path, cache: Cache, listed: bool) -> None:
    (by_others / SHARD).unlink()
    if not listed:
        shutil.rmtree(cache.repo(ID) / "trees")
    (model,) = installed(cache)
    assert not model.complete
    with pytest.raises(ModelNotFound, match=f"only partly on this computer. Run `download {ID}` to complete it"):
        resolve_model(ID, cache)


def test_cut_off_shard_of_others_is_not_whole(by_others: Path, cache: Cache) -> None:
    shutil.rmtree(cache.repo(ID) / "trees")
    blob = (by_others / SHARD).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert not installed(cache)[0].complete


def test_what_is_no_model_is_not_listed(cache: Cache, tmp_path: Path) -> None:
    assert installed(cache) == ()
    for name in ("datasets--a--b", "models--a--b/snapshots/" + "0" * 40, ".locks", "models--c--d"):
        (cache.root / name).mkdir(parents=True)
    (cache.snapshot("a/b", "0" * 40) / "config.json").write_text("{}")
    (cache.root / "models--file").write_text("")
    assert installed(cache) == ()


def test_folders_are_models_too(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path / "mine"), cache) == tmp_path / "mine"
    assert resolve_model("mine/model", cache) == tmp_path / "mine" / "model"
    for text in ("./none", "/none/at/all", "~/none-at-all", "C:\\none"):
        with pytest.raises(ModelNotFound, match="There is no model at"):
            resolve_model(text, cache)


@pytest.mark.parametrize("lost", ["", ".hetegen/listings"])
def test_what_is_removed_while_models_are_listed_is_not_among_them(
    by_others: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """By another program, between two looks at the same file."""
    shutil.rmtree(cache.repo(ID) / "trees")
    begun = cache.own(ID) / "listings" / f"{'0' * 40}.json"
    begun.parent.mkdir(parents=True)
    begun.write_text("{}")
    stat = Path.stat

    def looked(path: Path, **how: bool) -> os.stat_result:
        is_there = path.parent != (by_others if not lost else begun.parent) or path.name == "config.json"
        if not is_there:
            shutil.rmtree(cache.repo(ID) / lost, ignore_errors=True)
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", looked)
    assert [model.id for model in installed(cache)] == ([ID] if lost else [])


def test_unknown_id_says_how_to_get_it(cache: Cache) -> None:
    with pytest.raises(ModelNotFound, match=r"is not on this computer\. Run `download org/model` to get it"):
        resolve_model(ID, cache)
    with pytest.raises(BadRequest):
        resolve_model("what is this", cache)


def test_two_versions(hub: Double, client: Client, cache: Cache, manner: DownloadOptions, here: Path) -> None:
    repo = hub.repos[ID]
    hub.replace(replace(repo, files={**repo.files, "config.json": b'{"model_type": "llama"}'}))
    newer = download(client, cache, Reference(ID), manner=manner)
    assert [model.revision for model in revisions(cache, ID)] == [newer.revision, here.name]
    assert resolve_model(ID, cache) == newer.path
    assert resolve_model(f"{ID}@{here.name}", cache) == here


def test_verify_and_repair_only_what_is_bad(
    hub: Double,
    client: Client,
    cache: Cache,
    manner: DownloadOptions,
    here: Path,
    files: dict[str, bytes],
    whole: Check,
) -> None:
    read: list[int] = []
    sound = verify(cache, ID, here.name, read.append)
    assert sound.is_sound
    assert sound.checked_bytes == sum(read) == sum(len(files[name]) for name in NEEDED)
    blob = (here / SHARD).resolve()
    status = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    # Bit rot does not change a file's times.
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    lose(cache, here / "tokenizer.json")
    found = verify(cache, ID, here.name)
    assert (found.bad, found.missing, found.is_sound) == ((SHARD,), ("tokenizer.json",), False)
    hub.sent.clear()
    download(client, cache, Reference(ID, here.name), manner=manner)
    assert set(hub.sent) == {SHARD, "tokenizer.json"}
    assert verify(cache, ID, here.name).is_sound
    whole()


def lose(cache: Cache, place: Path) -> None:
    """Delete a file's content, which has a second name where there are no symbolic links."""
    names = [blob for blob in (cache.repo(ID) / "blobs").iterdir() if blob.samefile(place)]
    for name in {place.resolve(), *names}:
        name.unlink()


@pytest.mark.usefixtures("symlinks")
def test_verify_models_of_others(by_others: Path, cache: Cache) -> None:
    assert verify(cache, ID, by_others.name).is_sound
    shutil.rmtree(cache.repo(ID) / "trees")
    (by_others / "notes.txt").write_text("mine")
    found = verify(cache, ID, by_others.name)
    assert (found.bad, found.missing, found.unknown) == ((), (), ("notes.txt",))
    blob = (by_others / SHARD).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    assert verify(cache, ID, by_others.name).bad == (SHARD,)


def test_remove_says_what_is_freed(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, here: Path, files: dict[str, bytes]
) -> None:
    repo = hub.repos[ID]
    hub.replace(replace(repo, files={**repo.files, "config.json": b'{"model_type": "llama"}'}))
    download(client, cache, Reference(ID), manner=manner)
    before = disk_bytes(cache.root)
    size = sum(len(files[name]) for name in NEEDED) + len(b'{"model_type": "llama"}')
    freed = remove(cache, ID)
    assert freed == before - disk_bytes(cache.root)
    assert size <= freed < size + 20_000
    assert installed(cache) == ()
    assert not cache.repo(ID).exists()
    with pytest.raises(ModelNotFound):
        remove(cache, ID)


def disk_bytes(folder: Path) -> int:
    found = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())


@pytest.mark.usefixtures("symlinks")
def test_content_shared_with_another_model_is_not_counted(cache: Cache, here: Path, files: dict[str, bytes]) -> None:
    """huggingface_hub may keep contents in one store for all models, with links from each."""
    store = cache.root / "blobs" / "ab"
    store.mkdir(parents=True)
    links = []
    for name in (SHARD, "model-00001-of-00003.safetensors"):
        blob = (here / name).resolve()
        payload = store / blob.name
        blob.replace(payload)
        blob.symlink_to(os.path.relpath(payload, blob.parent))
        payload.with_name(payload.name + ".refs").write_text("{}")
        links.append((blob, payload))
    other = cache.repo("org/other") / "blobs"
    other.mkdir(parents=True)
    (other / links[0][0].name).symlink_to(os.path.relpath(links[0][1], other))
    freed = remove(cache, ID)
    assert links[0][1].exists()
    assert not links[1][1].exists()
    assert not links[1][1].with_name(links[1][1].name + ".refs").exists()
    alone = sum(len(files[name]) for name in NEEDED if name != SHARD)
    assert alone <= freed < alone + 20_000


def test_a_model_in_use_is_not_removed_in_part(here: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows neither deletes a file that is mapped nor renames the folder that contains one."""
    unlink, allowed = os.unlink, [1]

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "in use")

    def unlinked(path: str, **how: int) -> None:
        (unlink if allowed and allowed.pop() else refused)(path, **how)

    before = sorted(cache.repo(ID).rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused)
        patch.setattr(os, "unlink", unlinked)
        with pytest.raises(BadRequest, match=r"could not be removed.*in use"):
            remove(cache, ID)
    assert sorted(cache.repo(ID).rglob("*")) == before
    assert resolve_model(ID, cache) == here


def test_running_download_is_not_removed(hub: Double, cache: Cache, here: Path) -> None:
    rest = cache.partial(ID, "0" * 64)
    rest.write_bytes(b"on its way")
    lock = try_lock(cache.lock(ID, "0" * 64))
    assert lock is not None
    with pytest.raises(BadRequest, match="is being downloaded"):
        remove(cache, ID)
    lock.release()
    remove(cache, ID)


def test_discard_keeps_what_is_whole(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, here: Path, files: dict[str, bytes]
) -> None:
    repo = hub.repos[ID]
    newer = model_files(rows=512, seed=5)
    hub.replace(replace(repo, files=newer))
    hub.faults = [Fault(SHARD, "cut", at=9000, where="files"), Fault(SHARD, "cut", times=99)]
    with pytest.raises(Exception, match="broke"):
        download(client, cache, Reference(ID), manner=manner)
    assert len(installed(cache)) == 2
    before = disk_bytes(cache.root)
    freed = discard(cache, ID)
    assert freed >= 9000
    assert before - disk_bytes(cache.root) >= freed
    (model,) = installed(cache)
    assert (model.path, model.complete) == (here, True)
    assert verify(cache, ID, here.name).is_sound


def test_discard_of_a_first_download_removes_all(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions
) -> None:
    hub.faults = [Fault(SHARD, "cut", times=99)]
    with pytest.raises(Exception, match="broke"):
        download(client, cache, Reference(ID), manner=manner)
    assert discard(cache, ID) > 0
    assert not cache.repo(ID).exists()
    assert discard(cache, ID) == 0


def test_damaged_listing_is_as_good_as_none(here: Path, cache: Cache) -> None:
    kept = next((cache.own(ID) / "listings").iterdir())
    for text in ("", "[]", "{}", '{"version": 1}', '{"version": 1, "files": [{"path": "../x", "size": 1}]}'):
        kept.write_text(text)
        (model,) = installed(cache)
        assert model.complete


def test_unmarked_model_is_listed_by_name(cache: Cache) -> None:
    with Double(Repo("gpt9", model_files(shards=1))) as hub, Client(hub.endpoint) as client:
        download(client, cache, Reference("gpt9"))
    assert [model.id for model in installed(cache)] == ["gpt9"]


def test_folders_are_used_in_place(here: Path, tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data" / "folders.json")
    assert folders.installed() == ()
    mine = tmp_path / "mine"
    shutil.copytree(here, mine)
    model = folders.add(mine)
    assert (model.id, model.path, model.complete) == ("mine", mine, True)
    folders.add(mine)
    assert folders.installed() == (model,)
    (mine / SHARD).unlink()
    assert not folders.installed()[0].complete
    with pytest.raises(ModelUnreadable, match="Some weights are missing"):
        folders.add(mine)
    (mine / "config.json").unlink()
    assert folders.installed() == ()
    folders.remove(mine)
    assert folders.file.read_text() == "[]"
    assert mine.exists()
