"""A real MCP server over stdio, written with the SDK; its argument selects what it does wrong."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Literal

from mcp.server import MCPServer

server = MCPServer("test")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def echo(text: str) -> str:
    """Say a text again."""
    return text


@server.tool()
def paint(colour: Literal["red", "green"]) -> str:
    """Paint the wall in a colour."""
    return f"The wall is {colour}."


@server.tool()
def key() -> str:
    """The key in the environment, which also stands in the log."""
    print("using", os.environ.get("API_KEY", ""), file=sys.stderr, flush=True)
    return os.environ.get("API_KEY", "none")


@server.tool()
def secrets() -> str:
    """Names of variables that other programs' keys are in."""
    return os.environ.get("HF_TOKEN", "none")


@server.tool()
def big(size: int) -> str:
    """A long text."""
    return "x" * size


@server.tool()
def fail() -> str:
    """Always wrong."""
    raise ValueError("no such thing")


@server.tool()
def hang() -> str:
    """Takes an hour."""
    time.sleep(3600)
    return ""


@server.tool()
def die() -> str:
    """End the program."""
    os._exit(7)


@server.tool()
def rant() -> str:
    """Fill the error output for ever."""
    while True:
        os.write(2, b"!" * 65536)


def babble(part: str) -> None:
    """Write what is no message, for ever."""
    while True:
        sys.stdout.write(part)


def listen() -> None:
    """Answer at an address on loopback instead, which is written to the output."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as line:
        print(f"http://127.0.0.1:{line.getsockname()[1]}/mcp", flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="critical")
        uvicorn.Server(config).run(sockets=[line])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["mute"]:
            time.sleep(3600)
        case ["nonsense"]:
            babble("nonsense\n")
        case ["swell"]:
            babble("x" * 65536)
        case ["close"]:
            os.close(1)
            time.sleep(3600)
        case ["crash"]:
            print("cannot find my files", file=sys.stderr)
            sys.exit(3)
        case ["http"]:
            listen()
        case _:
            server.run()
