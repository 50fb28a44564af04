"""Installation of the runtime from a real server: resumed, verified, unpacked, with no partial results left behind."""

from __future__ import annotations

import io
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from core.errors import DiskFull, DownloadFailed, NetworkError
from core.events import never
from core.gpu_runtime.install import Advance, install
from core.gpu_runtime.start import own_torch
from core.gpu_runtime.store import DOWNLOADS, Runtime
from core.gpu_runtime.unpack import unpack
from core.gpu_runtime.wheel_index import Indexes
from core.gpu_runtime.wheel_selection import Needed, find_needed
from core.graphics.builds import NoRuntime
from core.hub.client import Client
from core.hub.downloader import DownloadOptions
from core.hub.retry import Stopped
from tests.core.gpu_runtime.conftest import QUICK
from tests.core.gpu_runtime.wheels import PACKAGES, PADDING, XPU, Index, Offer, wheel


def test_what_torch_needs_here_and_is_not_here_already(needed: Needed, index: Index, offer: Offer):
    files = {file.path for _, file in needed.wheels}
    assert files == set(index.wheels) - offer.left
    assert needed.version == offer.version
    assert needed.download_bytes == sum(len(index.wheels[file]) for file in files)
    assert needed.disk_bytes > needed.download_bytes


def test_a_version_that_is_not_offered_is_said(client: Client, index: Index, offer: Offer):
    with pytest.raises(NoRuntime, match=rf"torch==1\.0\+{offer.tag} is not offered"):
        find_needed(Indexes(client, index.pages, offer.tag), offer.build, "1.0")


def test_a_wheel_without_a_checksum_is_not_taken(
    client: Client, index: Index, offer: Offer, monkeypatch: pytest.MonkeyPatch
):
    page = index.page
    monkeypatch.setattr(index, "page", lambda tag, name: (page(tag, name) or "").replace("#sha256=", "#md5="))
    with pytest.raises(NoRuntime):
        find_needed(Indexes(client, index.pages, offer.tag), offer.build, own_torch())


def test_fetched_unpacked_and_stamped(
    client: Client, runtime: Runtime, needed: Needed, manner: DownloadOptions, offer: Offer
):
    heard: list[Advance] = []
    install(client, runtime, needed, heard.append, never, manner)
    folder = runtime.folder(offer.version)
    assert runtime.installed() == offer.version
    assert (folder / offer.lies).read_bytes() == PADDING
    assert not (folder / PACKAGES / "torch/include").exists()
    assert runtime.installed_bytes() == sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "stamp.json"
    )
    assert not runtime.downloads.root.exists()
    assert (heard[-1].step, heard[-1].done) == ("unpacking", heard[-1].total)


def test_downloads_that_a_scanner_holds_do_not_spoil_what_is_installed(
    client: Client,
    runtime: Runtime,
    needed: Needed,
    manner: DownloadOptions,
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(runtime: Runtime) -> None:
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(Runtime, "drop_downloads", refused)
    install(client, runtime, needed, manner=manner)
    assert runtime.installed() == offer.version


def test_a_cut_download_goes_on_where_it_was(
    client: Client, runtime: Runtime, needed: Needed, manner: DownloadOptions, index: Index, offer: Offer
):
    index.cut = {offer.library: 300_000}
    install(client, runtime, needed, manner=manner)
    assert (offer.library, "bytes=300000-") in index.ranges
    assert runtime.installed() == offer.version


def test_paused_and_taken_up_by_another_run(
    client: Client, runtime: Runtime, needed: Needed, manner: DownloadOptions, index: Index, offer: Offer
):
    with pytest.raises(Stopped):
        install(client, runtime, needed, stop=lambda: True, manner=manner)
    assert runtime.installed() == ""
    here = runtime.downloads.partial(DOWNLOADS, next(f.etag for _, f in needed.wheels if f.path == offer.library))
    here.write_bytes(index.wheels[offer.library][:500_000])
    install(client, runtime, needed, manner=manner)
    assert (offer.library, "bytes=500000-") in index.ranges
    assert runtime.installed() == offer.version


def test_damage_is_never_installed(
    client: Client, runtime: Runtime, needed: Needed, manner: DownloadOptions, index: Index, offer: Offer
):
    index.flipped = {offer.library}
    with pytest.raises(DownloadFailed, match="checksum was wrong"):
        install(client, runtime, needed, manner=manner)
    assert runtime.installed() == ""


def test_no_network_is_said():
    with Client("http://127.0.0.1:9", retries=QUICK) as nobody, pytest.raises(NetworkError, match="cannot be reached"):
        find_needed(Indexes(nobody, ("http://127.0.0.1:9/whl/{tag}",), XPU.tag), XPU.build, own_torch())


@pytest.mark.parametrize("free", [1000, (256 << 20) + 3_000_000])
def test_a_full_disk_is_said_and_what_came_is_kept(
    client: Client,
    runtime: Runtime,
    needed: Needed,
    manner: DownloadOptions,
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(0, 0, free if runtime.downloads.root.exists() else 0))
        if free > 1000:
            patch.setattr("core.gpu_runtime.unpack.RESERVE_BYTES", free)
        with pytest.raises(DiskFull):
            install(client, runtime, needed, manner=manner)
    assert runtime.installed() == ""
    install(client, runtime, needed, manner=manner)
    assert runtime.installed() == offer.version


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../evil", "C:\\evil", "a\\..\\evil"])
def test_nothing_is_written_outside(tmp_path: Path, name: str):
    packed = tmp_path / "bad.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name.replace("\\", "/") if "\\" not in name else zipfile.ZipInfo(name), b"evil")
    # zipfile itself replaces backslashes on Windows only.
    with pytest.raises(DownloadFailed, match="would write to"):
        unpack([packed], tmp_path / "out" / "runtime", never, lambda done, total: None)
    assert {path.name for path in tmp_path.rglob("*")} <= {"bad.whl", "out", "runtime"}


def test_no_path_is_too_long_for_windows(tmp_path: Path):
    """Most Windows computers allow 260 characters: checks torch's longest path below a user name of 20 characters."""
    parts = "kineto/libkineto/third_party/dynolog/third_party/prometheus-cpp/3rdparty/civetweb/src/third_party/duktape"
    names = [f"torch-2.13.0+cu130.dist-info/licenses/{place}LICENSE.txt" for place in ("", f"third_party/{parts}/")]
    packed = tmp_path / "torch.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in (*names, "torch/__init__.py"):
            archive.writestr(name, b"text")
    unpack([packed], tmp_path / "out", never, lambda done, total: None)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(found) == [f"{PACKAGES}/{names[0]}", f"{PACKAGES}/torch/__init__.py"]
    root = "C:/Users/twenty.characters.is/AppData/Local/HeteGen/gpu-runtime/2.13.0+cu130.partial/"
    assert max(map(len, found)) + len(root) < 260 < len(f"{root}{PACKAGES}/{names[1]}")


def test_a_wheel_that_is_none_is_said(tmp_path: Path):
    packed = tmp_path / "bad.whl"
    packed.write_bytes(b"<html>sign in</html>")
    with pytest.raises(DownloadFailed, match="is no wheel"):
        unpack([packed], tmp_path / "out", never, lambda done, total: None)


def test_a_damaged_wheel_is_said(tmp_path: Path):
    content = bytearray(next(iter(wheel("x", "1", {"x.py": PADDING}).values())))
    content[1000] ^= 1
    packed = tmp_path / "bad.whl"
    packed.write_bytes(bytes(content))
    assert zipfile.is_zipfile(io.BytesIO(bytes(content)))
    with pytest.raises(DownloadFailed, match="damaged"):
        unpack([packed], tmp_path / "out", never, lambda done, total: None)
