"""Who is answered: host names, origins, keys; and that only intended endpoints are reachable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.datastructures import Headers

from core.errors import BadRequest
from core.server.engine_thread import EngineThread
from core.server.errors import ApiError
from core.server.options import ServerOptions
from core.server.security import AccessRules, host_of
from core.server.server import Server
from tests.core.server.conftest import LIMITS
from tests.core.server.wire import ask

KEY = "a-key-of-this-test"
WIDE = ServerOptions("0.0.0.0", key=KEY, hosts=("box.example",))


@pytest.mark.parametrize(
    "host", ["localhost:9931", "127.0.0.1", "127.1.2.3:80", "[::1]:9931", "[::ffff:127.0.0.1]", "LOCALHOST"]
)
def test_names_of_this_computer_are_answered(server: Server, host: str) -> None:
    assert ask(server, "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example:9931", "192.168.1.7", "localhost.evil.example", "[2001:db8::1]", ""])
def test_other_names_are_refused_before_anything_else(server: Server, host: str) -> None:
    for path in ("/v1/models", "/health", "/nowhere"):
        assert ask(server, path, headers={"Host": host})[0] == 403


def test_a_wide_server_goes_by_its_own_names_and_addresses() -> None:
    access = AccessRules(WIDE, lambda: frozenset({"192.168.1.7", "mybox", "mybox.local"}))
    known = ["192.168.1.7", "mybox", "mybox.local", "box.example", "localhost", "::ffff:192.168.1.7"]
    assert all(access.knows_host(host) for host in known)
    assert not any(access.knows_host(host) for host in ("192.168.1.8", "evil.example", "", "mybox.evil.example"))


@pytest.mark.parametrize(
    ("header", "host"),
    [("A.b:1", "a.b"), ("[::1]:80", "::1"), ("::1", "::1"), ("a.b.", "a.b"), (" x ", "x"), ("[", ""), ("", "")],
)
def test_hosts_are_read_out_of_their_header(header: str, host: str) -> None:
    assert host_of(header) == host


def test_a_wide_address_demands_a_key(guide: EngineThread) -> None:
    with pytest.raises(BadRequest, match="key"):
        Server(guide, ServerOptions("0.0.0.0", port=0))


@pytest.fixture
def keyed(guide: EngineThread) -> Iterator[Server]:
    running = Server(guide, ServerOptions(port=0, key=KEY, origins=("https://page.example",), limits=LIMITS))
    yield running
    running.close()


def test_a_key_opens_by_either_header(keyed: Server) -> None:
    assert ask(keyed, "/v1/models")[0] == 401
    assert ask(keyed, "/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert ask(keyed, "/v1/models", headers={"Authorization": f"Basic {KEY}"})[0] == 401
    assert ask(keyed, "/v1/models", headers={"Authorization": f"bearer {KEY}"})[0] == 200
    assert ask(keyed, "/v1/models", headers={"x-api-key": KEY})[0] == 200
    assert ask(keyed, "/health")[0] == 200
    assert KEY not in repr(keyed.options)


def test_pages_may_ask_only_where_their_origin_was_named(keyed: Server) -> None:
    def refusal(origin: str) -> str | None:
        try:
            AccessRules(keyed.options).check("GET", "/health", Headers({"host": "localhost:1", "origin": origin}))
        except ApiError as error:
            return error.code
        return None

    assert refusal("https://evil.example") == refusal("null") == "origin_not_allowed"
    assert refusal("https://page.example") is refusal("http://localhost:1") is None
    assert ask(keyed, "/v1/models", headers={"Origin": "https://page.example"}, method="OPTIONS")[0] == 204


def test_a_port_that_is_taken_is_said(server: Server, guide: EngineThread) -> None:
    with pytest.raises(BadRequest, match="cannot be used"):
        Server(guide, ServerOptions(port=server.port))
