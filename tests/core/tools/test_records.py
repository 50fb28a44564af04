"""Tool servers as pasted and saved, and the names by which models call their tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import BadRequest
from core.tools.book import Book, read_book, write_book
from core.tools.dialects import parse_servers
from core.tools.names import offers
from core.tools.server import ServerTool, ToolServer
from tests.core.keyring_in_memory import Ring

ENTRY = {"command": "npx", "args": ["-y", "@x/files", "/data"], "env": {"KEY": "abcd", "LEVEL": 3}}
FILES = ToolServer("files", "npx", ("-y", "@x/files", "/data"), {"KEY": "abcd", "LEVEL": "3"})


@pytest.mark.parametrize("text", [{"mcpServers": {"files": ENTRY}}, {"servers": {"files": ENTRY}, "inputs": []},
                                  {"mcp": {"servers": {"files": ENTRY}}}, {"files": ENTRY},
                                  {"name": "files", **ENTRY}])  # fmt: skip
def test_every_programs_way_of_writing_a_server_is_read(text: object) -> None:
    assert parse_servers(json.dumps(text)) == (FILES,)


def test_addresses_and_servers_that_are_off_are_read() -> None:
    text = {"mcpServers": {"": {"url": "http://localhost:8000/mcp", "headers": {"Authorization": "Bearer x"}},
                           "old": {**ENTRY, "disabled": True}}}  # fmt: skip
    web, old = parse_servers(json.dumps(text))
    assert (web.name, web.url, web.headers) == ("localhost", "http://localhost:8000/mcp", {"Authorization": "Bearer x"})
    assert (web.on, old.on) == (True, False)


@pytest.mark.parametrize(("text", "says"), [
    ("{", "not JSON"), ("[]", "names no server"), ("{}", "names no server"), ('{"mcpServers": {}}', "names no server"),
    ('{"a": {"args": []}}', "neither a command nor an address"), ('{"mcpServers": {"a": 1}}', "is not a server"),
    ('{"a": {"command": "x", "args": "y"}}', "not a list of texts"), ('{"a": {"url": "ftp://x"}}', "not the address"),
    ('{"a": {"command": "x", "env": [1]}}', "not a table of texts"), ("[" * 100_000, "not JSON"),
    ('{"servers": {"a": {"command": "x", "env": {"K": "${input:key}"}}}}', "gap to fill in: ${input:key}"),
])  # fmt: skip
def test_what_cannot_be_read_says_why(text: str, says: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_servers(text)
    assert says in str(raised.value)


def test_a_book_is_kept_with_its_keys_in_the_keyring_alone(tmp_path: Path) -> None:
    path, ring = tmp_path / "tools.json", Ring()
    book = Book().put(FILES).permit("files", "read", "always").put(ToolServer("web", url="http://127.0.0.1:1/"))
    assert write_book(path, book, Book(), ring)
    assert "abcd" not in path.read_text("utf-8")
    assert read_book(path, ring) == book
    fewer = book.without("files")
    assert write_book(path, fewer, book, ring)
    assert (read_book(path, ring), ring.kept) == (fewer, {})
    assert fewer.permission("files", "read") == "ask"


def test_a_renamed_server_stays_in_its_place_and_a_damaged_book_is_an_empty_one(tmp_path: Path) -> None:
    book = Book().put(FILES).put(ToolServer("web", url="http://127.0.0.1:1/"))
    assert [one.name for one in book.put(ToolServer("disk", "x"), "files").servers] == ["disk", "web"]
    path = tmp_path / "tools.json"
    for text in ("", "[]", '{"servers": [{}], "permissions": []}', '{"servers": 3}'):
        path.write_text(text, "utf-8")
        assert read_book(path, Ring()) == Book()


def test_names_are_sound_and_each_once() -> None:
    tools = [ServerTool("search"), ServerTool("get.page/now"), ServerTool("x" * 90), ServerTool("get page now")]
    found = offers({"my web": tools, "disk": [ServerTool("search"), ServerTool("")]})
    names = [offer.tool.name for offer in found]
    assert names[:2] == ["my_web_search", "get_page_now"]
    assert names[3:5] == ["get_page_now_2", "disk_search"]
    assert len(set(names)) == len(names) == 6
    assert all(0 < len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in names)
    assert [(offer.server, offer.name) for offer in found][1] == ("my web", "get.page/now")
