"""Responses of the Hub: references, search pages, facts, model cards, and the files that a chat needs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from core.errors import BadRequest, ModelNotFound, ModelUnreadable, NetworkError, UnsupportedModel
from core.hub.client import Client
from core.hub.file_selection import needed_files
from core.hub.listing import (
    Listing,
    Reference,
    RemoteFile,
    is_safe_path,
    list_files,
    model_info,
    next_page,
    parse_reference,
    read_card,
    search,
    without_head,
)
from tests.core.hub.conftest import ID, NEEDED
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files, oid, sha256

Connect = Callable[..., Client]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Reference("org/name")),
        (" gpt2 ", Reference("gpt2")),
        ("org/name@v1.0", Reference("org/name", "v1.0")),
        ("org/name@refs/pr/1", Reference("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name", Reference("org/name")),
        ("huggingface.co/org/name/", Reference("org/name")),
        ("hf.co/org/name?x=1", Reference("org/name")),
        ("https://huggingface.co/org/name/tree/abc/sub", Reference("org/name", "abc")),
        ("https://huggingface.co/org/name/blob/main/config.json", Reference("org/name")),
        ("https://mirror.test/org/name", Reference("org/name")),
        ("org/name:Q4_K_M", Reference("org/name", file="Q4_K_M")),
        ("org/name@v1:sub/a.gguf", Reference("org/name", "v1", "sub/a.gguf")),
        ("hf.co/org/name:Q8_0", Reference("org/name", file="Q8_0")),
        ("https://huggingface.co/org/name/blob/main/sub/a.gguf", Reference("org/name", file="sub/a.gguf")),
    ],
)
def test_names_and_addresses(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a b", "../x", "a/b/c", "a/..", "a/b@../../x", "a/b@", "https://", "a--b/c", "ä/b"]
)
def test_what_is_no_name(text: str) -> None:
    if text == "a/b@":
        assert parse_reference(text) == Reference("a/b")
        return
    with pytest.raises(BadRequest, match="owner/name"):
        parse_reference(text)


def test_search_in_pages(connect: Connect) -> None:
    repos = [Repo(f"org/model-{number}", {}, gated=number == 0) for number in range(5)]
    with Double(*repos, Repo("org/other", {})) as hub:
        client = connect(hub.endpoint)
        page = search(client, "model", "downloads", limit=2)
        ids = [model.id for model in page.models]
        while page.following:
            page = next_page(client, page.following)
            ids += [model.id for model in page.models]
        assert ids == [repo.id for repo in repos]
        query = hub.paths()[0]
    for part in ("pipeline_tag=text-generation", "sort=downloads", "expand=safetensors", "expand=gguf"):
        assert part in query


def test_facts(connect: Connect) -> None:
    repo = Repo(ID, model_files(), gated=True, parameters={"BF16": 100, "F32": 10})
    with Double(repo) as hub:
        info = model_info(connect(hub.endpoint), Reference(ID))
    assert (info.id, info.revision, info.license, info.gated) == (ID, repo.sha, "apache-2.0", True)
    assert (info.parameter_count, info.weight_bytes) == (110, 240)


def test_card_without_its_head(hub: Double, client: Client) -> None:
    assert read_card(client, ID, hub.repos[ID].sha) == "# A model"
    assert without_head("---\r\na: 1\r\n---\r\n\r\nText") == "Text"
    assert without_head("Text\n---\nmore\n---\n") == "Text\n---\nmore\n---"


def test_unknown_model_and_revision(hub: Double, client: Client) -> None:
    with pytest.raises(ModelNotFound, match="org/none"):
        model_info(client, Reference("org/none"))
    with pytest.raises(ModelNotFound, match="no such revision"):
        model_info(client, Reference(ID, "v9"))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"sha": "x"}', b'"text"'])
def test_answers_of_others_are_not_understood(hub: Double, client: Client, body: bytes) -> None:
    hub.repos[ID] = Repo(ID, {})
    hub.servers[0].RequestHandlerClass = type(
        "Liar",
        (hub.servers[0].RequestHandlerClass,),
        {"do_GET": lambda self: self._answer(200, body, {})},
    )
    with pytest.raises(NetworkError, match="was not understood"):
        model_info(client, Reference(ID))


def test_files_with_their_checksums(hub: Double, client: Client, files: dict[str, bytes]) -> None:
    listing = list_files(client, ID, hub.repos[ID].sha)
    assert {file.path: file.etag for file in listing.files} == {
        path: sha256(data) if path.endswith((".safetensors", ".bin", ".gguf", ".onnx", ".pth")) else oid(data)
        for path, data in files.items()
    }


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("a", True), ("a/b.c", True), (".gitattributes", True), ("a/..b", True), ("ü/é.txt", True),
        ("", False), ("..", False), ("a/../b", False), ("/a", False), ("a//b", False), ("a\\b", False), ("C:a", False),
        ("a/./b", False), ("a\0b", False), ("a/", False), ("nul\n", False), ("a?b", False),
    ],
)  # fmt: skip
def test_safe_paths(path: str, safe: bool) -> None:
    assert is_safe_path(path) is safe


def listing(*paths: str) -> Listing:
    return Listing(ID, "0" * 40, tuple(RemoteFile(path, 1, "1" * 40) for path in paths))


def paths(found: tuple[RemoteFile, ...]) -> list[str]:
    return [file.path for file in found]


def test_needed_files_of_a_sharded_model(files: dict[str, bytes]) -> None:
    found = needed_files(listing(*files), files["model.safetensors.index.json"])
    assert sorted(paths(found)) == NEEDED
    assert [path.endswith(".safetensors") for path in paths(found)] == [False] * 6 + [True] * 3


@pytest.mark.parametrize(
    ("there", "weights"),
    [
        (("model.safetensors", "model.fp16.safetensors"), ["model.safetensors"]),
        (("model.safetensors", "consolidated.safetensors"), ["model.safetensors"]),
        (("weights.safetensors", "adapter_model.safetensors"), ["weights.safetensors"]),
        (("a.safetensors", "b.safetensors", "onnx/c.safetensors"), ["a.safetensors", "b.safetensors"]),
    ],
)
def test_one_set_of_weights(there: tuple[str, ...], weights: list[str]) -> None:
    found = paths(needed_files(listing("config.json", *there), None))
    assert found == ["config.json", *weights]


def test_small_files_that_chats_need() -> None:
    wanted = (
        "additional_chat_templates/tool.jinja", "added_tokens.json", "chat_template.jinja", "config.json", "merges.txt",
        "special_tokens_map.json", "tokenizer.model", "vocab.json", "LICENSE", "LICENSE.txt",
    )  # fmt: skip
    others = ("modeling_x.py", "figure.png", "original/tokenizer.model", "trainer_state.json", "training_args.bin")
    found = paths(needed_files(listing(*wanted, *others, "model.safetensors"), None))
    assert sorted(found[:-1]) == sorted(wanted)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (("model.safetensors",), "no config.json"),
        (("config.json", "pytorch_model.bin"), "hidden code"),
        (("config.json", "adapter_model.safetensors"), "no safetensors weights"),
    ],
)
def test_what_cannot_be_used_is_said(there: tuple[str, ...], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        needed_files(listing(*there), None)


@pytest.mark.parametrize("index", [b"", b"{}", b"[]", b'{"weight_map": [1]}'])
def test_damaged_index_is_said(index: bytes) -> None:
    with pytest.raises(ModelUnreadable, match="damaged"):
        needed_files(listing("config.json", "model-1.safetensors"), index)


def test_shard_that_is_not_there_is_said() -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    with pytest.raises(ModelUnreadable, match=r"1 of its weight files are missing there, first two\.safetensors"):
        needed_files(listing("config.json", "one.safetensors"), index)


def test_rate_limit_headers_are_waited_for(hub: Double, client: Client) -> None:
    hub.faults = [Fault("api/models", "status", code=429, headers={"RateLimit": '"api";r=0;t=0'})]
    assert model_info(client, Reference(ID)).id == ID
