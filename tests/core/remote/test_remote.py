"""Remote models: against our own server, and against fakes of all behaviour that servers have been seen to show."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from core.errors import BadRequest, HeteGenError, KeyRefused, ModelNotFound, NetworkError
from core.events import (
    Checked,
    Event,
    Failed,
    Finished,
    Loaded,
    LoadOptions,
    Message,
    Piece,
    Request,
    Sampling,
    ToolCallPiece,
)
from core.remote.check import check
from core.remote.endpoint import Endpoint, base_url, parse_source
from core.remote.engine import RemoteEngine
from core.server.activity import Activity
from core.server.engine_thread import EngineThread
from core.server.options import ServerOptions
from core.server.server import Server
from tests.core.server.conftest import LIMITS, guide, server
from tests.loopback import Loopback

__all__ = ["guide", "server"]

ASK = Request((Message("user", "What is HeteGen?"),), Sampling(temperature=0.0, max_new_tokens=40))
Answer = Callable[[BaseHTTPRequestHandler], None]


LISTED = {"object": "list", "data": [{"id": "big/model", "max_model_len": 4096}]}


class Fake(BaseHTTPRequestHandler):
    """A server that answers /v1/models as configured, and chats by `reply`."""

    reply: Answer
    models: Any = LISTED
    key = ""
    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.say(401, {"error": {"message": "Wrong key."}})
        elif self.models is None:
            self.say(404, {"detail": "Not Found"})
        else:
            self.say(200, self.models)

    def do_POST(self) -> None:
        self.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        type(self).reply(self)

    def say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, *parts: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for part in parts:
            self.wfile.write(part if isinstance(part, bytes) else f"data: {json.dumps(part)}\n\n".encode())
            self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def fake(reply: Answer = lambda handler: None, **attributes: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Provide the address of a running fake, and the bodies of its requests."""
    seen: list[dict[str, Any]] = []
    kind = type("One", (Fake,), {"reply": reply, "seen": seen, **attributes})
    with Loopback(kind) as running:
        yield f"{running.address}/v1", seen


def delta(**what: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": what, "finish_reason": None}]}


def ended(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def loaded(url: str, model: str = "", key: str = "") -> RemoteEngine:
    engine = RemoteEngine(lambda _: key)
    events = list(engine.load(Endpoint(url, model).source, LoadOptions()))
    if isinstance(events[-1], Failed):
        raise events[-1].error
    assert isinstance(events[-1], Loaded)
    return engine


def said(events: list[Event], kind: str = "answer") -> str:
    return "".join(event.text for event in events if isinstance(event, Piece) and event.kind == kind)


def test_our_own_server_answers_as_the_model_does(server: Server, guide: EngineThread) -> None:
    engine = loaded(server.address)
    first = list(engine.chat(ASK))
    assert said(first)
    assert isinstance(first[-1], Finished)
    stats = first[-1].stats
    assert stats.prompt_tokens > 0
    assert stats.new_tokens > 0
    assert stats.context_limit > 0
    assert said(list(engine.chat(ASK))) == said(first)


def test_a_stop_ends_the_reply_there_too(server: Server) -> None:
    engine, pieces = loaded(server.address), 0

    def stop() -> bool:
        return pieces > 0

    long = Request(ASK.messages, Sampling(temperature=0.0, max_new_tokens=900))
    for event in engine.chat(long, stop):
        pieces += isinstance(event, Piece)
    assert isinstance(event, Finished)
    assert event.reason == "stopped"


def test_a_wrong_key_is_told_from_a_missing_server(guide: EngineThread) -> None:
    running = Server(guide, ServerOptions(port=0, key="right", limits=LIMITS), Activity())
    try:
        assert loaded(running.address, key="right")
        with pytest.raises(KeyRefused, match="refuses the key"):
            loaded(running.address, key="wrong")
    finally:
        running.close()
    with pytest.raises(NetworkError, match="Nothing answers"):
        loaded(running.address, key="right")


def without_exceptions(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """Have all plain requests go through a proxy, as far as the environment has a say."""
    monkeypatch.setenv("http_proxy", proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def test_no_proxy_is_asked_for_a_server_on_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    without_exceptions(monkeypatch, "http://127.0.0.1:9")
    with fake() as (url, _):
        assert loaded(url)


def test_a_proxy_is_told_the_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def get(handler: Fake) -> None:
        asked.append((handler.path, handler.headers.get("Proxy-Authorization")))
        handler.say(200, LISTED)

    with fake(do_GET=get) as (url, _):
        without_exceptions(monkeypatch, url.replace("http://", "http://me:p%40ss@").removesuffix("/v1"))
        assert loaded("http://box.test:8000/v1")
    assert asked == [("http://box.test:8000/v1/models", "Basic bWU6cEBzcw==")]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_every_dialect_of_a_stream_is_read(name: str) -> None:
    def reply(handler: Fake) -> None:
        handler.stream(
            b": still reading\n\n", delta(role="assistant", content=None), delta(**{name: "Hm."}),
            delta(content="Grüß"), delta(content=" dich 🦊"), ended("length"), {"choices": []},
            {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, b"data: [DONE]\n\n",
        )  # fmt: skip

    with fake(reply) as (url, seen):
        events = list(loaded(url).chat(ASK))
    assert said(events) == "Grüß dich 🦊"
    assert said(events, "reasoning") == "Hm."
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "length"
    assert (events[-1].stats.prompt_tokens, events[-1].stats.new_tokens) == (7, 3)
    assert events[-1].stats.context_limit == 4096
    assert seen[0]["model"] == "big/model"
    assert "top_p" not in seen[0]


def test_tool_calls_arrive_in_their_parts() -> None:
    def reply(handler: Fake) -> None:
        first = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a":'}}
        handler.stream(
            delta(tool_calls=[first]), delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]), ended()
        )

    with fake(reply) as (url, _):
        events = [event for event in loaded(url).chat(ASK) if isinstance(event, ToolCallPiece)]
    assert events == [ToolCallPiece(0, "c1", "look", '{"a":'), ToolCallPiece(0, "", "", "1}")]


def test_a_server_that_does_not_stream_is_read_all_the_same() -> None:
    whole = {"choices": [{"message": {"content": "All at once."}, "finish_reason": "stop"}]}
    with fake(lambda handler: handler.say(200, whole)) as (url, _):  # type: ignore[attr-defined]
        assert said(list(loaded(url).chat(ASK))) == "All at once."


def broken(handler: Fake) -> None:
    handler.stream(delta(content="Half"))
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (broken, NetworkError, "was lost"),
        (lambda handler: handler.stream(b"data: <html>\n\n"), NetworkError, "not understood"),
        *(
            (lambda handler, part=part: handler.stream(delta(content="Half"), part), NetworkError, "not understood")
            for part in (["a list"], {"choices": ["words"]}, {"usage": {"prompt_tokens": "many"}}, {"choices": 7})
        ),
        (lambda handler: handler.stream({"error": {"message": "Out of memory"}}), NetworkError, "Out of memory."),
        (lambda handler: handler.say(500, "boom"), NetworkError, "failed"),
        (lambda handler: handler.say(400, {"error": {"message": "Too long."}}), BadRequest, "Too long"),
        (lambda handler: handler.say(404, {"error": "model is gone"}), ModelNotFound, "model is gone"),
        (lambda handler: handler.say(403, {}), KeyRefused, "refuses the key"),
    ],
)
def test_what_goes_wrong_is_one_sentence(reply: Answer, kind: type[HeteGenError], words: str) -> None:
    with fake(reply) as (url, _):
        *_, last = loaded(url).chat(ASK)
    assert isinstance(last, Failed)
    assert type(last.error) is kind
    assert words in str(last.error)


def test_a_silent_server_is_left_as_soon_as_the_user_stops() -> None:
    waiting, over = threading.Event(), threading.Event()
    left_first: list[bool] = []

    def reply(handler: Fake) -> None:
        waiting.set()
        left_first.append(over.wait(30))

    with fake(reply) as (url, _):
        *_, last = loaded(url).chat(ASK, waiting.is_set)
        over.set()
    assert isinstance(last, Finished)
    assert last.reason == "stopped"
    assert left_first == [True], "the user waited until the server gave up"


@pytest.mark.parametrize("entry", [{"meta": "none"}, {"meta": {"n_ctx": "4k"}}, {"max_model_len": None}])
def test_a_context_that_is_no_number_is_not_known(entry: dict[str, Any]) -> None:
    with fake(models={"data": [{"id": "m", **entry}]}) as (url, _):
        *_, last = RemoteEngine().load(Endpoint(url, "m").source, LoadOptions())
    assert isinstance(last, Loaded)
    assert last.context == 0


def test_a_check_finds_out_what_a_load_would_and_changes_nothing() -> None:
    with fake(lambda handler: handler.stream(delta(content="hi"), ended())) as (url, seen):  # type: ignore[attr-defined]
        engine = loaded(url)
        assert list(engine.check(Endpoint(url, "big/model").source, LoadOptions())) == [Checked()]
        (failed,) = engine.check(Endpoint(url, "other").source, LoadOptions())
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, ModelNotFound)
        assert said(list(engine.chat(ASK))) == "hi"
        assert [one["model"] for one in seen] == ["big/model"]


def test_models_are_found_by_name_or_believed() -> None:
    with fake() as (url, _), pytest.raises(ModelNotFound, match="It has big/model"):
        loaded(url, "other")
    with fake(models=[{"id": "a bare list"}]) as (url, _):
        assert loaded(url)
    with fake(models=None) as (url, _):
        assert loaded(url, "whatever it is called")
        with pytest.raises(ModelNotFound):
            loaded(url)


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://box:8000/", "http://box:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        (" https://host/api/v1/chat/completions ", "https://host/api/v1"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
    ],
)
def test_addresses_are_taken_as_people_write_them(typed: str, url: str) -> None:
    assert base_url(typed) == url
    for model in ("", "org/name", "name with # and %", "größe:7b"):
        assert parse_source(Endpoint(url, model).source) == Endpoint(url, model)


@pytest.mark.parametrize("typed", ["", "ftp://host", "http://", "http://host:port", "http://[::1", "two words"])
def test_what_is_no_address_is_said(typed: str) -> None:
    with pytest.raises(BadRequest, match="address of a server"):
        base_url(typed)


def test_the_check_names_the_step_that_fails() -> None:
    with socket.socket() as taken:  # it refuses connections, and nobody else can listen there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert [one.step for one in check(f"http://127.0.0.1:{port}") if one.error] == ["connection"]
    assert [one.step for one in check("no address") if one.error] == ["address"]
    assert [one.step for one in check("http://name.invalid:1") if one.error] == ["name"]
    with fake(key="right") as (url, _):
        assert [one.step for one in check(url, "wrong") if one.error] == ["key"]
        assert list(check(url, "right"))[-1].models == ("big/model",)
        secure = url.replace("http://", "https://")
        assert [one.step for one in check(secure) if one.error] == ["certificate"]
    with fake(models=None) as (url, _):
        assert [one.step for one in check(url) if one.error] == ["path"]


def test_a_reply_that_said_why_it_ends_needs_no_mark_at_the_end() -> None:
    def reply(handler: Any) -> None:
        handler.stream(
            {"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        )

    with fake(reply) as (url, _):
        engine = RemoteEngine()
        list(engine.load(f"remote:{url}#big/model", LoadOptions()))
        said, *_, end = engine.chat(ASK)
    assert said == Piece("Hi")
    assert isinstance(end, Finished)
