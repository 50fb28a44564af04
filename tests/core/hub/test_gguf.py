"""Repositories with GGUF files: choosing one, its verdict before the download, fetching and deleting only that one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from core.api import judge_files, plan_with
from core.commands.models import make_client
from core.errors import BadRequest, ModelNotFound, NetworkError
from core.events import LoadOptions
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.fit import Wishes
from core.hub.gguf_choices import Judged, best_choice, gguf_choices, wanted_gguf
from core.hub.gguf_header import BEFORE_VOCABULARY, FIRST_BYTES, HeaderReader, judge
from core.hub.installed import installed, resolve_model, verify
from core.hub.listing import Listing, Reference, RemoteFile, list_files, search
from core.hub.remote_spec import read_local, read_remote
from core.hub.removal import remove
from core.model.model_source import open_source
from core.runtime.fit import FitChecker
from core.spec import Budget
from tests.core.hub.conftest import run
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files
from tests.core.machines import DESKTOP
from tests.core.weights.gguf.test_families import split
from tests.core.weights.gguf.tiny_gguf import make_model, write_gguf

ID = "org/tiny-GGUF"
SMALL, GOOD, PLAIN = "tiny-Q4_0.gguf", "tiny-Q8_0.gguf", "tiny-F16-00001-of-00003.gguf"
ALL = (SMALL, GOOD, PLAIN)
README = b"---\nlicense: mit\n---\nTiny."


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, model = tmp_path_factory.mktemp("gguf"), make_model("llama")
    kinds = gguf.GGMLQuantizationType
    write_gguf("llama", model, folder / GOOD, kinds.Q8_0)
    write_gguf("llama", model, folder / SMALL, kinds.Q4_0)
    whole = write_gguf("llama", model, folder / "whole", kinds.F16)
    split(gguf.GGUFReader(whole), folder, 3)
    found = {path.name.replace("m-", "tiny-F16-"): path.read_bytes() for path in folder.glob("*.gguf")}
    return found | {"README.md": README, "mmproj-tiny.gguf": b"GGUF", "tiny-imatrix.gguf": b"GGUF"}


@pytest.fixture
def hub(contents: dict[str, bytes]) -> Iterator[Double]:
    with Double(Repo(ID, contents, tags=("gguf", "license:mit"), parameters={})) as running:
        yield running


@pytest.fixture
def listing(client: Client, hub: Double) -> Listing:
    return list_files(client, ID, hub.repos[ID].sha)


def names(*paths: str) -> list[tuple[str, str, int]]:
    files = tuple(RemoteFile(path, 1, "1" * 40) for path in paths)
    return [(one.path, one.kind, len(one.files)) for one in gguf_choices(Listing(ID, "0" * 40, files))]


def test_parts_are_one_choice_and_what_is_no_model_is_none() -> None:
    assert names("a-q4_k_m.gguf", "mmproj-a-F16.gguf", "a.imatrix.gguf", "README.md") == [
        ("a-q4_k_m.gguf", "Q4_K_M", 1)
    ]
    assert names("F16/a-F16-00001-of-00002.gguf", "F16/a-F16-00002-of-00002.gguf") == [
        ("F16/a-F16-00001-of-00002.gguf", "F16", 2)
    ]
    assert names("a-F16-00001-of-00002.gguf") == [], "the other part is missing there"
    assert names("a-00003-of-00002.gguf") == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen3-4B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"), ("llama.Q5_K_S.gguf", "Q5_K_S"), ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"), ("BF16/m-00001-of-00001.gguf", "BF16"), ("Q3-chat.gguf", ""),
        ("m-TQ1_0.gguf", "TQ1_0"), ("m-fp16.gguf", "FP16"), ("Qwen2.5-7B.gguf", ""), ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
    ],
)  # fmt: skip
def test_kinds_are_read_from_names(name: str, kind: str) -> None:
    assert [one[1] for one in names(name)] == [kind]


def test_a_choice_is_named_by_file_or_kind(listing: Listing) -> None:
    for text in (GOOD, "q8_0", "Q8_0", GOOD.lower()):
        assert wanted_gguf(listing, text).path == GOOD  # type: ignore[union-attr]
    assert wanted_gguf(listing, "tiny-F16-00002-of-00003.gguf").path == PLAIN  # type: ignore[union-attr]
    with pytest.raises(ModelNotFound, match=r"no GGUF file Q2_K\. There are Q4_0, Q8_0, F16"):
        wanted_gguf(listing, "Q2_K")
    with pytest.raises(BadRequest, match=f"holds 3 models in GGUF.*such as {ID}:Q4_0"):
        wanted_gguf(listing, "")


def test_the_verdict_before_the_download_is_that_of_the_file(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, contents: dict[str, bytes]
) -> None:
    checker = FitChecker(lambda: DESKTOP, Budget())
    for path in ALL:
        remote = read_remote(client, Reference(ID, file=path))
        before = checker(remote.config, remote.tensors, Wishes())
        here = download(client, cache, Reference(ID, file=path), manner=manner).path
        config, tensors = read_local(here)
        assert FitChecker(lambda: DESKTOP, Budget())(config, tensors, Wishes()) == before


def test_a_download_brings_one_choice_and_a_second_leaves_the_first(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, contents: dict[str, bytes]
) -> None:
    first = download(client, cache, Reference(ID, file="Q8_0"), manner=manner)
    assert (first.id, first.path.read_bytes()) == (f"{ID}:{GOOD}", contents[GOOD])
    assert first.bytes == first.downloaded_bytes == len(contents[GOOD]) + len(README)
    assert sorted(hub.sent) == ["README.md", GOOD]
    second = download(client, cache, Reference(ID, file="F16"), manner=manner)
    assert second.path.name == PLAIN
    assert {model.id: model.complete for model in installed(cache)} == {f"{ID}:{GOOD}": True, f"{ID}:{PLAIN}": True}
    assert verify(cache, second.id, second.revision).is_sound
    assert resolve_model(f"{ID}:f16", cache) == second.path
    with pytest.raises(BadRequest, match="Several models in GGUF"):
        resolve_model(ID, cache)


def test_a_download_that_broke_is_gone_on_with_while_another_one_ends(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, contents: dict[str, bytes]
) -> None:
    hub.faults = [Fault(GOOD, "cut", at=1000, where="files"), Fault(GOOD, "status", times=20, skip=2)]
    with pytest.raises(NetworkError):
        download(client, cache, Reference(ID, file="Q8_0"), manner=manner)
    hub.faults.clear()
    begun = next(model for model in installed(cache) if model.id.endswith(GOOD))
    assert 0 < begun.bytes < begun.total == len(contents[GOOD])
    with pytest.raises(ModelNotFound, match="only partly"):
        resolve_model(f"{ID}:Q8_0", cache)
    download(client, cache, Reference(ID, file="Q4_0"), manner=manner)
    assert download(client, cache, Reference(ID, file="Q8_0"), manner=manner).resumed_bytes >= begun.bytes
    assert resolve_model(f"{ID}:Q8_0", cache).read_bytes() == contents[GOOD]


def test_removing_one_leaves_the_others(
    hub: Double, client: Client, cache: Cache, manner: DownloadOptions, contents: dict[str, bytes]
) -> None:
    for path in ALL:
        download(client, cache, Reference(ID, file=path), manner=manner)
    parts = sum(len(data) for name, data in contents.items() if "F16" in name)
    assert remove(cache, f"{ID}:{PLAIN}") == pytest.approx(parts, abs=200)
    assert [model.id for model in installed(cache)] == [f"{ID}:{SMALL}", f"{ID}:{GOOD}"]
    with pytest.raises(ModelNotFound):
        remove(cache, f"{ID}:{PLAIN}")
    remove(cache, f"{ID}:{SMALL}")
    assert resolve_model(ID, cache).name == GOOD, "the only one needs no name"
    remove(cache, f"{ID}:{GOOD}")
    assert not cache.repo(ID).exists()


def test_files_of_other_programs_are_found(hub: Double, cache: Cache) -> None:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(ID, GOOD, cache_dir=cache.root, endpoint=hub.endpoint))
    (model,) = installed(cache)
    assert (model.id, model.path, model.complete) == (f"{ID}:{GOOD}", path, True)


def test_beside_safetensors_a_file_is_taken_only_by_its_name(
    client: Client, cache: Cache, manner: DownloadOptions, hub: Double, contents: dict[str, bytes]
) -> None:
    hub.repos["org/both"] = Repo("org/both", model_files(shards=1) | {GOOD: contents[GOOD]})
    whole = download(client, cache, Reference("org/both"), manner=manner)
    assert GOOD not in [path.name for path in whole.path.iterdir()]
    one = download(client, cache, Reference("org/both", file="Q8_0"), manner=manner)
    assert {model.id for model in installed(cache)} == {"org/both", f"org/both:{GOOD}"}
    assert resolve_model("org/both", cache) == whole.path
    remove(cache, one.id)
    assert [model.id for model in installed(cache)] == ["org/both"]
    assert installed(cache)[0].complete


def long_vocabulary(writer: Any) -> None:
    """Add a vocabulary as long as a real one, and something small after it, so that reading takes several ranges."""
    writer.add_array("tokenizer.ggml.more", [f"token {number:07}" for number in range(120_000)])
    writer.add_string("tokenizer.ggml.last", "x")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, model = tmp_path_factory.mktemp("large"), make_model("llama")
    kinds = gguf.GGMLQuantizationType
    return {
        name: write_gguf("llama", model, folder / name, kind, add=long_vocabulary).read_bytes()
        for name, kind in ((GOOD, kinds.Q8_0), (SMALL, kinds.Q4_0), ("tiny-Q5_0.gguf", kinds.Q5_0))
    }


def test_a_vocabulary_is_fetched_once(client: Client, hub: Double, large: dict[str, bytes]) -> None:
    assert min(map(len, large.values())) > 2 * FIRST_BYTES
    hub.repos[ID] = Repo(ID, large)
    listing = list_files(client, ID, hub.repos[ID].sha)
    reader = HeaderReader(client, listing)
    first, *others = gguf_choices(listing)
    reader.read(first)
    for choice in others:
        before = sum(hub.bytes_sent(path) for path in large)
        found = reader.read(choice)
        assert sum(hub.bytes_sent(path) for path in large) - before < 4 * BEFORE_VOCABULARY
        assert found == HeaderReader(client, listing).read(choice), "the same as on its own"


def test_files_with_another_vocabulary_are_read_whole(client: Client, hub: Double, large: dict[str, bytes]) -> None:
    other = large[GOOD].replace(b"token 0119999", b"token 9999999")
    hub.repos[ID] = Repo(ID, {SMALL: large[SMALL], GOOD: other})
    listing = list_files(client, ID, hub.repos[ID].sha)
    reader = HeaderReader(client, listing)
    together = [reader.read(choice) for choice in gguf_choices(listing)]
    assert together == [HeaderReader(client, listing).read(choice) for choice in gguf_choices(listing)]


def test_the_largest_that_runs_well_is_recommended(client: Client, listing: Listing, hub: Double) -> None:
    judged = list(judge(client, listing, FitChecker(lambda: DESKTOP, Budget()), Wishes()))
    best = best_choice(judged)
    assert [one.choice.path for one in judged] == list(ALL)
    assert best is not None
    assert best.choice.path == GOOD, "what is not quantised takes more and is no better"
    assert best_choice([Judged(one.choice, error=BadRequest("x")) for one in judged]) is None


def test_a_damaged_file_does_not_hide_the_others(client: Client, hub: Double, contents: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(ID, {GOOD: contents[GOOD], SMALL: b"GGUF" + bytes(100)})
    listing = list_files(client, ID, hub.repos[ID].sha)
    small, good = judge(client, listing, FitChecker(lambda: DESKTOP, Budget()), Wishes())
    assert small.fit is None
    assert "GGUF's version 0" in str(small.error)
    assert good.fit is not None


def test_search_shows_them(client: Client, hub: Double) -> None:
    hub.repos["org/pickled"] = Repo("org/pickled", {}, tags=("pytorch",), parameters={})
    (found,) = search(client, "").models
    assert (found.id, found.gguf_only, found.weight_bytes) == (ID, True, 0)


def test_commands(here: Path, hub: Double, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRequest, match="holds 3 models"):
        run("download", ID)
    result = run("download", f"{ID}:Q4_0")
    assert result["id"] == f"{ID}:{SMALL}"
    assert [model["id"] for model in run("models")] == [f"{ID}:{SMALL}"]
    assert f":{SMALL}" in capsys.readouterr().out
    assert open_source(f"{ID}:q4_0").name == "tiny-Q4_0"
    assert open_source(ID).name == "tiny-Q4_0"
    assert run("remove", f"{ID}:Q4_0", "--yes")["freed_bytes"] > 0
    assert run("models") == []


def test_plans_before_the_download(here: Path, hub: Double) -> None:
    options = LoadOptions(context=256, threads=1)
    planned = plan_with(f"{ID}:Q8_0", options, make_client)
    assert planned.spec.name == f"{ID}:Q8_0"
    assert planned.plan.fits == "yes"
    judged = judge_files(ID, options, make_client)
    assert [one.fit.kind for one in judged if one.fit] == ["fits"] * 3


def test_a_server_that_is_away_is_one_failure(listing: Listing, hub: Double, connect: Callable[..., Client]) -> None:
    client = connect("http://127.0.0.1:9")
    with pytest.raises(NetworkError):
        list(judge(client, listing, FitChecker(lambda: DESKTOP, Budget()), Wishes()))
