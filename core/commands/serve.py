"""`serve`: serves a model through OpenAI's and Anthropic's APIs, for editors and other programs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from core.api import load_engine
from core.commands.arguments import add_json, add_machine_options, load_options
from core.commands.chat import show_progress
from core.errors import BadRequest
from core.sentence import sentence
from core.server.options import DEFAULT_PORT, LOOPBACK, ServerOptions

ABOUT = "Serve a model to other programs. A request that names another installed model has that one loaded first."


def add(subparsers: Any) -> None:
    """Add the command `serve` and its options."""
    parser = subparsers.add_parser(
        "serve", help="an OpenAI- and Anthropic-compatible server for other programs", description=ABOUT
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a folder or a Hub id; the built-in guide if left out"
    )
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help="0.0.0.0 = other computers too, with a key")
    parser.add_argument("--port", type=int, metavar="N", help=f"the first free one from {DEFAULT_PORT} if left out")
    parser.add_argument("--api-key", default="", metavar="KEY", help="made and kept for you where one is needed")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help="a web page that may ask")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this computer"
    )
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until Ctrl+C. Raises HeteGenError."""
    options = _options(args)
    how = load_options(args)
    engine, model = load_engine(args.model, how, show_progress)
    from core.remote.engine import RemoteEngine
    from core.server.engine_thread import EngineThread
    from core.server.served import AnyModel, OneModel
    from core.server.server import Server

    served = OneModel(model) if isinstance(engine, RemoteEngine) else AnyModel(engine, model, args.model, how)
    backend = EngineThread(engine, served)
    try:
        server = Server(backend, options)
        try:
            _announce(server.address, model.name, options)
            server.wait()
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
        finally:
            server.close()
    finally:
        backend.close()
        engine.close()
    return {"address": server.address, "model": model.name}


def _options(args: argparse.Namespace) -> ServerOptions:
    """Return the server's options; a server open to others gets a key. Raises BadRequest."""
    if args.port is not None and not 0 <= args.port <= 65535:
        raise BadRequest(sentence("The port {} is out of range.", args.port), "", "Choose 1 to 65535.")
    options = ServerOptions(
        args.host, args.port, args.api_key, tuple(args.allow_origin), tuple(args.allow_host)
    )  # fmt: skip
    if options.is_local or options.key:
        return options
    from core.keyring import system_keyring
    from core.server.key import kept_key

    key = kept_key(system_keyring())
    return ServerOptions(args.host, args.port, key, tuple(args.allow_origin), tuple(args.allow_host))


def _announce(address: str, model: str, options: ServerOptions) -> None:
    print(f"{model} answers at {address}", file=sys.stderr)
    if options.key:
        print(f"API key: {options.key}", file=sys.stderr)
    if not options.is_local:
        print("Other computers on this network can reach it with this key.", file=sys.stderr)
    print("Ctrl+C ends it.", file=sys.stderr, flush=True)
