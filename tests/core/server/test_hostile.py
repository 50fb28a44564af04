"""Clients that leave, trickle, flood or send nonsense: nothing hangs or leaks, and nobody sees a traceback."""

from __future__ import annotations

import gc
import json
import logging
import random
import socket
import sys
import threading
from dataclasses import replace

import pytest

from core.server.engine_thread import EngineThread
from core.server.options import ServerOptions
from core.server.server import Server
from tests.core.server.conftest import LIMITS
from tests.core.server.wire import LONG, QUESTION, ask, open_request, wait_until

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_reply(server: Server, stream: bool) -> None:
    connection = open_request(server, CHAT, LONG | {"stream": stream})
    assert wait_until(lambda: any(live.stage == "replying" for live in server.activity.snapshot().live))
    connection.close()
    assert wait_until(lambda: server.activity.running == 0)
    assert ask(server, CHAT, {"messages": QUESTION, "max_tokens": 2})[0] == 200, "the engine is free again"


def test_a_client_that_leaves_while_it_waits_is_never_answered(server: Server, occupied: threading.Event) -> None:
    connection = open_request(server, CHAT, LONG)
    assert wait_until(lambda: server.activity.running == 1)
    connection.close()
    assert wait_until(lambda: server.activity.running == 0)
    occupied.set()
    assert ask(server, CHAT, {"messages": QUESTION, "max_tokens": 2})[0] == 200
    assert server.activity.totals.new_tokens == 2


def test_many_clients_get_right_answers_and_leave_no_thread(server: Server) -> None:
    body = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}
    expected = ask(server, CHAT, body)[1]["choices"][0]["message"]["content"]
    before = set(threading.enumerate())
    answers: list[str] = []

    def client() -> None:
        answers.append(ask(server, CHAT, body)[1]["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=client) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 32
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("occupied")
def test_more_than_may_wait_are_told_to_come_back(guide: EngineThread) -> None:
    server = Server(guide, ServerOptions(port=0, limits=replace(LIMITS, waiting=8)))
    held = [open_request(server, CHAT, LONG) for _ in range(8)]
    assert wait_until(lambda: server.activity.running == 8)
    assert ask(server, CHAT, LONG)[0] == 429
    for connection in held:
        connection.close()
    assert wait_until(lambda: server.activity.running == 0)
    server.close()


def test_closing_ends_replies_and_threads(server: Server) -> None:
    connection = open_request(server, CHAT, LONG | {"stream": True})
    waiting = open_request(server, CHAT, LONG)
    assert wait_until(lambda: server.activity.running == 2)
    server.close()
    assert server.activity.running == 0
    assert "server" not in {thread.name for thread in threading.enumerate()}
    connection.close()
    waiting.close()


def test_closing_hangs_up_on_a_client_whose_request_never_ends(
    guide: EngineThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[object] = []
    monkeypatch.setattr("core.server.server.CLOSING_S", 0.1)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_value))
    server = Server(guide, ServerOptions(port=0, limits=LIMITS))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 100"), "it waits for the rest"
        server.close()
        assert connection.recv(1) == b""
    gc.collect()
    assert not lost


@pytest.mark.parametrize("hasty", [{"headers_s": 1.0}], indirect=True)
@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/chat", b"POST / HTTP/1.1\r\nHost: localhost\r\nX: ", b"\x16\x03\x01 tls?"]
)
def test_a_client_that_dribbles_is_hung_up_on(hasty: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as connection:
        connection.sendall(sent)
        while connection.recv(4096):
            pass


@pytest.mark.parametrize("hasty", [{"body_s": 1.0}], indirect=True)
def test_a_body_that_never_comes_is_refused(hasty: Server) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(64).startswith(b"HTTP/1.1 408")


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    assert ask(server, CHAT, b"x" * (LIMITS.body + 1))[0] == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(5):
            connection.sendall(chunk)
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.usefixtures("occupied")
@pytest.mark.parametrize("hasty", [{"ping_s": 0.2, "refusal_s": 0.1}], indirect=True)
def test_a_stream_is_kept_alive_while_others_are_answered(hasty: Server) -> None:
    connection = open_request(hasty, CHAT, LONG | {"stream": True})
    received = b""
    while b": ping" not in received:
        part = connection.recv(4096)
        assert part, "the server hung up"
        received += part
    connection.close()
    assert wait_until(lambda: hasty.activity.running == 0)


def test_nonsense_is_answered_with_a_400_and_never_a_traceback(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    randomness = random.Random(0)
    paths = [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"]
    with caplog.at_level(logging.WARNING):
        for number in range(200):
            status, body = ask(server, paths[number % len(paths)], fuzzed(randomness))
            assert status in (200, 400), body
    assert not [record for record in caplog.records if "Traceback" in record.getMessage() or record.exc_info]


def fuzzed(randomness: random.Random) -> bytes:
    """Return a body that is nearly valid, or nonsense."""
    body = {
        "messages": QUESTION, "prompt": "x", "input": "x", "max_tokens": 2, "temperature": 0.5, "stream": False,
        "tools": [{"type": "function", "function": {"name": "f"}}], "stop": ["x"], "seed": 1, "max_output_tokens": 2,
    }  # fmt: skip
    for _ in range(randomness.randrange(4)):
        body[randomness.choice(list(body))] = _odd(randomness)
    text = json.dumps(body).encode()
    match randomness.randrange(4):
        case 0:
            at = randomness.randrange(len(text))
            return text[:at] + randomness.randbytes(randomness.randrange(6)) + text[at + randomness.randrange(6) :]
        case 1 if randomness.random() < 0.3:
            return b"[" * 50_000
        case _:
            return text


def _odd(randomness: random.Random) -> object:
    return randomness.choice(
        [None, True, -1, 2**70, 1e308, "", "\x00\ud83d\ude00", [], {}, [None], [{}], {"a": [{}]}, "auto",
         [{"role": "user", "content": "\u202e" * 50}], [{"role": "tool", "content": None}], {"type": "function"}]
    )  # fmt: skip
