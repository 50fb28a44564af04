"""A server whose clients choose among the installed models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from core.engine import Engine
from core.errors import ModelUnreadable
from core.events import Loaded, Loading, LoadOptions, never
from core.paths import builtin_model
from core.runtime.loader import Opened
from core.server.engine_thread import EngineThread, models_on_disk
from core.server.options import ServerOptions
from core.server.served import AnyModel
from core.server.server import Server
from tests.core.server.conftest import LIMITS
from tests.core.server.wire import QUESTION, ask, events

GUIDE, OTHER, BROKEN = "HeteGen-Guide", "someone/other", "someone/broken"
CHAT = "/v1/chat/completions"
SHORT = {"messages": QUESTION, "max_tokens": 3, "temperature": 0}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in (OTHER, BROKEN):
        repository, commit = tmp_path / f"models--{name.replace('/', '--')}", "a" * 40
        shutil.copytree(builtin_model(), repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "tokenizer.json").write_text("{}")
    engine, options = Engine(), LoadOptions(context=512)
    model = next(event for event in engine.load(None, options) if isinstance(event, Loaded))
    backend = EngineThread(engine, AnyModel(engine, model, None, options))
    running = Server(backend, ServerOptions(port=0, limits=LIMITS))
    yield running
    running.close()
    backend.close()
    engine.close()


def loaded(server: Server) -> dict[str, bool]:
    return {entry["id"]: entry["loaded"] for entry in ask(server, "/v1/models")[1]["data"]}


def answered(server: Server, name: str) -> str:
    """Return the name of the model that answers a request for `name`."""
    status, reply = ask(server, CHAT, SHORT | {"model": name})
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"]
    return str(reply["model"])


def test_the_model_that_a_request_names_answers(server: Server) -> None:
    assert loaded(server) == {GUIDE: True, OTHER: False, BROKEN: False}
    assert answered(server, OTHER) == OTHER
    assert loaded(server) == {OTHER: True, GUIDE: False, BROKEN: False}
    assert answered(server, "gpt-4o") == OTHER, "a name that is not installed means the model in use"
    assert answered(server, GUIDE) == GUIDE
    chunks = events(server, CHAT, SHORT | {"model": OTHER})
    assert {chunk["model"] for chunk in chunks if chunk != "[DONE]"} == {OTHER}
    assert ask(server, "/v1/messages/count_tokens", {"model": GUIDE, "messages": QUESTION})[0] == 200
    assert loaded(server)[GUIDE]


def test_clients_that_want_different_models_at_once_each_get_theirs(server: Server) -> None:
    wanted = [GUIDE, OTHER] * 4
    got = dict[int, str]()
    clients = [Thread(target=lambda at=at: got.update({at: answered(server, wanted[at])})) for at in range(len(wanted))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert [got[at] for at in range(len(wanted))] == wanted


def test_a_model_that_cannot_be_loaded_leaves_the_server_answering(server: Server) -> None:
    for _ in range(2):
        status, reply = ask(server, CHAT, SHORT | {"model": BROKEN})
        assert status >= 400
        assert reply["error"]["message"]
        assert answered(server, "anything") == GUIDE
    assert answered(server, OTHER) == OTHER


def test_a_model_that_breaks_once_the_one_before_is_given_up_is_followed_by_the_first(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answered(server, OTHER) == OTHER

    def fail(opened: Opened) -> Iterator[Loading]:
        yield Loading("weights", 0.5)
        raise ModelUnreadable("The disk was unplugged.")

    with monkeypatch.context() as broken:
        broken.setattr("core.engine.load_opened", fail)
        status, reply = ask(server, CHAT, SHORT | {"model": GUIDE})
        assert (status, reply["error"]["message"]) == (500, "The disk was unplugged.")
        assert True not in loaded(server).values()
    assert answered(server, "anything") == GUIDE


def test_a_first_model_in_gguf_has_the_id_under_which_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client that takes that id from the list would have the model loaded again."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--someone--tiny-GGUF", "b" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "tiny-Q8_0.gguf").write_bytes(b"GGUF")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    engine, model = Engine(), Loaded("tiny-Q8_0", "llama", "int8", 512, 1, 1, 0.1)
    served = AnyModel(engine, model, "someone/tiny-GGUF", LoadOptions())
    assert [served.name] == models_on_disk()
    load = served.loader(served.name)
    assert load is not None
    assert not list(load(engine, never)), "it is loaded"
    assert AnyModel(engine, model, "/a/folder/tiny-Q8_0.gguf", LoadOptions()).name == "tiny-Q8_0"
