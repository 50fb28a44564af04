"""A model's config and tensor list from the Hub, without its weights, in few and small requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.errors import ModelUnreadable
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.listing import Reference
from core.hub.remote_spec import FIRST_BYTES, read_remote
from core.hub.retry import Stopped
from core.weights.safetensors_header import read_header
from tests.core.hub.conftest import ID, NEEDED
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files, safetensors

Connect = Callable[..., Client]


def test_same_as_after_the_download(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, files: dict[str, bytes]
) -> None:
    remote = read_remote(client, Reference(ID))
    assert remote.config["model_type"] == "llama"
    assert remote.download_bytes == sum(len(files[name]) for name in NEEDED)
    here = download(client, cache, Reference(ID), manner=manner).path
    local = {name: info for path in here.glob("*.safetensors") for name, info in read_header(path).items()}
    assert remote.tensors == local
    assert remote.parameters == 3 * 512 * 512
    assert remote.weight_bytes == 2 * remote.parameters


def test_no_weights_and_few_requests(connect: Connect) -> None:
    files = model_files(shards=8, rows=4096)
    with Double(Repo(ID, files)) as hub:
        read_remote(connect(hub.endpoint), Reference(ID))
        shards = [path for path in hub.paths("files") if path.endswith(".safetensors")]
        assert len(shards) == 8
        assert len(hub.paths()) == 4 + 8
        assert max(hub.bytes_sent(name) for name in hub.sent) <= FIRST_BYTES


def test_long_header_takes_a_second_request(connect: Connect) -> None:
    weights = safetensors({"a": (4, 4)}, padding=FIRST_BYTES + 1000)
    with Double(Repo(ID, {"config.json": b"{}", "model.safetensors": weights})) as hub:
        assert read_remote(connect(hub.endpoint), Reference(ID)).tensors["a"].shape == (4, 4)
        assert len(hub.paths("files")) == 2


def test_server_without_ranges(hub: Double, client: Client) -> None:
    hub.faults = [Fault(".safetensors", "no_range", times=99)]
    assert len(read_remote(client, Reference(ID)).tensors) == 3


@pytest.mark.parametrize("weights", [b"", b"12", b"\xff" * 100, b"\x10" + bytes(7) + b"not json at all!"])
def test_what_is_no_safetensors_is_said(hub: Double, client: Client, weights: bytes) -> None:
    hub.replace(Repo(ID, {"config.json": b"{}", "model.safetensors": weights}))
    with pytest.raises(ModelUnreadable):
        read_remote(client, Reference(ID))


def test_weights_cut_off_on_the_hub_are_said(hub: Double, client: Client) -> None:
    weights = safetensors({"a": (64, 64)})[:-1]
    hub.replace(Repo(ID, {"config.json": b"{}", "model.safetensors": weights}))
    with pytest.raises(ModelUnreadable, match="cut off on the Hub"):
        read_remote(client, Reference(ID))


def test_config_that_is_no_object_is_said(hub: Double, client: Client) -> None:
    hub.replace(replace(hub.repos[ID], files={**hub.repos[ID].files, "config.json": b"[]"}))
    with pytest.raises(ModelUnreadable, match=r"config\.json"):
        read_remote(client, Reference(ID))


def test_stops_when_asked(hub: Double, client: Client) -> None:
    with pytest.raises(Stopped):
        read_remote(client, Reference(ID), lambda: True)
