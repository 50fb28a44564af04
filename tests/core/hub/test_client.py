"""The client: where the token is sent, sentences for refusals and broken connections, reuse of connections."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from core.errors import AccessDenied, HeteGenError, ModelNotFound, NetworkError
from core.hub.client import Client
from core.hub.http_errors import refusal, retry_after
from core.hub.listing import Reference, file_address, model_info
from core.hub.retry import Retries, Stopped, Transient, nap, retry
from tests.core.hub.conftest import ID, QUICK
from tests.core.hub.fake_hub import Double, Fault, Repo, model_files

Connect = Callable[..., Client]
WHOLE_REQUEST = 1 << 16
"""A server that closes with a part of it unread resets the connection, and Windows then drops its answer."""


def headers(**fields: str) -> Message:
    made = Message()
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    return made


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Start a server that handles one connection after another with `serve`; yields host:port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def loop() -> None:
            while not over.is_set():
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    continue
                with line:
                    line.settimeout(60)
                    try:
                        serve(line)
                    except OSError:
                        continue

        thread = threading.Thread(target=loop)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def test_token_goes_to_the_endpoint_only(hub: Double, connect: Connect) -> None:
    client = connect(hub.endpoint, "hf_secret")
    name = "model-00001-of-00003.safetensors"
    info = model_info(client, Reference(ID))
    assert client.get_bytes(file_address(client, ID, info.revision, name), ID) == hub.repos[ID].files[name]
    authorized = [seen.headers.get("authorization") for seen in hub.seen if seen.host == "hub"]
    assert authorized == ["Bearer hf_secret"] * 2
    (at_files,) = [seen for seen in hub.seen if seen.host == "files"]
    assert "hf_secret" not in str(at_files)


def test_token_does_not_go_to_the_next_page_of_another_host(hub: Double, connect: Connect) -> None:
    hub.faults = [Fault("api/models", "status", code=200, headers={"Link": f'<{hub.files_host}/api>; rel="next"'})]
    with pytest.raises(NetworkError, match="another host"):
        connect(hub.endpoint, "hf_secret").get_json(f"{hub.endpoint}/api/models", "")
    assert hub.paths("files") == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_refused(hub: Double, connect: Connect, location: str) -> None:
    hub.faults = [Fault("api/models", "status", code=302, headers={"Location": location})]
    with pytest.raises(NetworkError, match="not safe"):
        model_info(connect(hub.endpoint), Reference(ID))


def test_redirects_without_end_are_refused(hub: Double, connect: Connect) -> None:
    hub.faults = [Fault("api/models", "status", code=302, times=99, headers={"Location": "/api/models/again"})]
    with pytest.raises(NetworkError, match="without end"):
        model_info(connect(hub.endpoint), Reference(ID))


@pytest.mark.parametrize(
    ("status", "fields", "has_token", "kind", "words"),
    [
        (401, {"X_Error_Code": "RepoNotFound"}, False, ModelNotFound, "does not exist or is private"),
        (401, {"X_Error_Code": "GatedRepo"}, False, AccessDenied, "Accept the licence at https://hub/a/b, then enter"),
        (401, {}, False, AccessDenied, "may only be read with a token"),
        (401, {}, True, AccessDenied, "The token was not accepted"),
        (403, {"X_Error_Code": "GatedRepo"}, True, AccessDenied, "has not been given access"),
        (403, {"X_Error_Code": "Other", "X_Error_Message": "Blocked."}, True, AccessDenied, "Blocked."),
        (404, {"X_Error_Code": "RepoNotFound"}, True, ModelNotFound, "There is no model a/b on hub"),
        (404, {"X_Error_Code": "RevisionNotFound"}, True, ModelNotFound, "no such revision"),
        (404, {"X_Error_Code": "EntryNotFound"}, True, ModelNotFound, "A file of a/b"),
        (429, {}, False, NetworkError, "asks to slow down"),
        (500, {}, False, NetworkError, "It answered 500"),
        (418, {}, False, NetworkError, "It answered 418"),
    ],
)
def test_refusals_in_words(
    status: int, fields: dict[str, str], has_token: bool, kind: type[HeteGenError], words: str
) -> None:
    error = refusal(status, headers(**fields), "https://hub", "a/b", has_token=has_token)
    assert type(error) is kind
    assert words in str(error)
    assert error.next_step


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry_After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=4;t=55'}, None),
        ({}, None),
    ],
)
def test_patience_that_the_server_asks_for(fields: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers(**fields)) == seconds


def test_host_that_does_not_exist(connect: Connect) -> None:
    with pytest.raises(NetworkError, match=r"nowhere\.invalid was not found\. The network may be off"):
        model_info(connect("http://nowhere.invalid"), Reference(ID))


def test_host_that_refuses(connect: Connect) -> None:
    with socket.socket() as taken:  # nobody else can listen there
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NetworkError, match="It refuses connections"):
            model_info(connect(address), Reference(ID))


def test_certificate_that_is_not_trusted(connect: Connect) -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(Path(__file__).with_name("self_signed.pem"))
    tried = []

    def serve(line: socket.socket) -> None:
        tried.append(1)
        served.wrap_socket(line, server_side=True).close()

    with listener(serve) as address:
        with pytest.raises(NetworkError, match="is not safe") as caught:
            model_info(connect(f"https://{address}", "hf_secret"), Reference(ID))
        assert "certificate was not accepted" in caught.value.why
        assert tried == [1]


def test_what_is_not_tls_at_all(connect: Connect) -> None:
    def serve(line: socket.socket) -> None:
        line.recv(WHOLE_REQUEST)
        line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listener(serve) as address, pytest.raises(NetworkError, match="No safe connection"):
        model_info(connect(f"https://{address}"), Reference(ID))


def test_answer_that_is_not_http(connect: Connect) -> None:
    def serve(line: socket.socket) -> None:
        line.recv(WHOLE_REQUEST)
        line.sendall(b"SSH-2.0-OpenSSH\r\n")

    with listener(serve) as address, pytest.raises(NetworkError, match="cannot be reached"):
        model_info(connect(f"http://{address}"), Reference(ID))


def test_json_cut_off_is_asked_again(hub: Double, connect: Connect) -> None:
    def serve(line: socket.socket) -> None:
        line.recv(2000)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[1, 2")

    with listener(serve) as address, pytest.raises(NetworkError, match="broke"):
        connect(f"http://{address}").get_json(f"http://{address}/api/models", "")


def test_connections_are_used_again_and_survive_being_closed(hub: Double, connect: Connect) -> None:
    client = connect(hub.endpoint)
    for _ in range(3):
        model_info(client, Reference(ID))
    hub.servers[0].hang_up()
    assert model_info(client, Reference(ID)).id == ID


def test_proxy_is_used_with_its_password(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def serve(line: socket.socket) -> None:
        asked.append(line.recv(4000))
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with listener(serve) as address:
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{address}")
        monkeypatch.setenv("no_proxy", "")
        assert connect("http://hub.test").get_json("http://hub.test/api/models", "") == ([], "")
    assert asked[0].startswith(b"GET http://hub.test/api/models HTTP/1.1")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in asked[0]


def test_https_goes_through_a_tunnel(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def serve(line: socket.socket) -> None:
        asked.append(line.recv(4000))
        line.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    with listener(serve) as address:
        monkeypatch.setenv("https_proxy", address)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(NetworkError, match="Tunnel connection failed: 407"):
            connect("https://hub.test", "hf_secret").get_json("https://hub.test/api/models", "")
    assert asked[0].startswith(b"CONNECT hub.test:443")
    assert b"hf_secret" not in asked[0]


def test_unknown_kind_of_proxy_is_said(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(NetworkError, match="socks5"):
        connect("https://hub.test").get_json("https://hub.test/api/models", "")


def test_offline_asks_nobody(hub: Double, connect: Connect) -> None:
    with pytest.raises(NetworkError, match="Offline mode is on"):
        model_info(connect(hub.endpoint, offline=True), Reference(ID))
    assert hub.seen == []


def test_waits_grow_and_are_drawn() -> None:
    patience = Retries(limit=3, first_s=1, longest_s=5)
    for failures, most in ((1, 1), (2, 2), (3, 4), (4, 5), (9, 5)):
        waits = {patience.wait_s(failures, None) for _ in range(20)}
        assert all(most / 2 <= wait <= most for wait in waits)
        assert len(waits) > 1
    assert patience.wait_s(1, 30.0) == 30.0
    assert not patience.gives_up(3, None)
    assert patience.gives_up(4, None)
    assert patience.gives_up(1, 3600)


def test_stop_ends_waiting() -> None:
    with pytest.raises(Stopped):
        nap(60, lambda: True)

    def fail() -> None:
        raise Transient(NetworkError("x"))

    asked = iter([False, True])
    with pytest.raises(Stopped):
        retry(fail, Retries(first_s=60), lambda: next(asked))


def test_gated_card_of_a_private_model(connect: Connect) -> None:
    with Double(Repo(ID, model_files(), private=True, allowed=("hf_good",))) as hub:
        with pytest.raises(ModelNotFound, match="private"):
            model_info(connect(hub.endpoint), Reference(ID))
        assert model_info(connect(hub.endpoint, "hf_good"), Reference(ID)).private
    assert QUICK.limit == 4
