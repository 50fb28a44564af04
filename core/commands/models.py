"""`search`, `download`, `models`, `remove`: each `run_...` prints for people and returns the JSON."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from core.errors import BadRequest
from core.hub.client import Client
from core.hub.download import Downloaded, download
from core.hub.environment import hub_environment
from core.hub.installed import candidates, default_cache, installed, revisions
from core.hub.listing import ModelInfo, parse_reference, search
from core.hub.progress import Progress, Report, duration
from core.hub.removal import own_bytes, remove
from core.hub.token import find_token, is_meant
from core.keyring import system_keyring
from core.units import format_bytes, format_rate, format_share

TERMINAL_S, LOG_S = 0.2, 5.0


def add_commands(subparsers: Any) -> None:
    """Declare the four commands on an argparse `add_subparsers` object; each sets `run`."""
    parser = _command(subparsers, "search", run_search, "find models on the Hub")
    parser.add_argument("text", metavar="TEXT", nargs="*", help="words of the name; nothing lists what is popular")
    parser.add_argument("--limit", type=int, default=20, metavar="N")
    parser = _command(subparsers, "download", run_download, "bring a model here, or the rest of it")
    parser.add_argument("id", metavar="ID[@REVISION][:FILE]", help="FILE: one in GGUF, by its name or as Q4_K_M")
    _command(subparsers, "models", run_models, "what is on this disk")
    parser = _command(subparsers, "remove", run_remove, "delete a model from this disk")
    parser.add_argument("id", metavar="ID[:FILE]")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def make_client() -> Client:
    """Return a client for the endpoint and token of this environment."""
    environment = hub_environment(os.environ)
    token = "" if environment.offline else find_token(environment, system_keyring()).value
    if environment.token and not is_meant(environment):
        allow = f"set HETEGEN_TOKEN_HOST={environment.host} to allow it"
        print(f"HF_TOKEN is not sent to {environment.host}; {allow}.", file=sys.stderr)
    return Client(environment.endpoint, token, offline=environment.offline)


def run_search(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print matching models, best first. Raises NetworkError."""
    with make_client() as client:
        found = search(client, " ".join(args.text), limit=max(1, min(args.limit, 100))).models
    for model in found:
        unsaid = "GGUF" if model.gguf_only else "size unknown"
        size = format_bytes(model.weight_bytes) if model.weight_bytes else unsaid
        mark = " (gated)" if model.gated else ""
        print(f"{model.id}{mark}  {size}, {model.downloads:,} downloads, {model.license or 'licence unknown'}")
    if not found:
        print("Nothing was found.", file=sys.stderr)
    return [_model_json(model) for model in found]


def run_download(args: argparse.Namespace) -> dict[str, Any]:
    """Download with progress on stderr. Raises HeteGenError, KeyboardInterrupt (what was fetched is kept)."""
    reference = parse_reference(args.id)
    with make_client() as client:
        result = download(client, default_cache(), reference, terminal_report(sys.stderr))
    print(f"{result.id} is here: {format_bytes(result.bytes)}, every file checked.\n{result.path}")
    return _download_json(result)


def run_models(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the models of the cache."""
    models = installed(default_cache())
    for model in models:
        whole = "" if model.complete else f", {format_share(model.bytes / max(model.total, 1))} here"
        id, colon, file = model.id.partition(":")
        print(f"{id}@{model.revision[:8]}{colon}{file}  {format_bytes(model.total)}{whole}")
    if not models:
        print("There are no models yet.", file=sys.stderr)
    return [
        {
            "id": model.id, "revision": model.revision, "path": str(model.path), "bytes": model.bytes,
            "complete": model.complete,
        }
        for model in models
    ]  # fmt: skip


def run_remove(args: argparse.Namespace) -> dict[str, Any]:
    """Delete a model after asking. Raises ModelNotFound, BadRequest."""
    cache, reference = default_cache(), parse_reference(args.id)
    here = candidates(cache, reference) if reference.file else revisions(cache, reference.id)
    id = here[0].id if here and reference.file else reference.name
    if not args.yes and here:
        size = here[0].bytes if reference.file else own_bytes(cache.repo(id))
        _confirm(f"Delete {id} ({format_bytes(size)}, {len(here)} version(s))? [y/N] ")
    freed = remove(cache, id)
    print(f"{id} was removed; {format_bytes(freed)} are free again.")
    return {"id": id, "freed_bytes": freed}


def terminal_report(out: TextIO | None) -> Report:
    """Return a report that updates one line on a terminal, and otherwise writes a line from time to time."""
    if out is None:
        return lambda _: None
    live = out.isatty()
    last, width = [0.0], [0]

    def report(progress: Progress) -> None:
        now = time.monotonic()
        if now - last[0] < (TERMINAL_S if live else LOG_S) and progress.phase != "done":
            return
        last[0] = now
        end, line = "\n" if progress.phase == "done" or not live else "", progress_line(progress)
        # Pad with spaces to clear the old line: some Windows consoles print escape codes as characters.
        print(f"\r{line:{width[0]}}" if live else line, end=end, flush=True, file=out)
        width[0] = len(line)

    return report


def progress_line(progress: Progress) -> str:
    """Return one line about a download for people."""
    if progress.phase == "listing":
        return f"{progress.id}: asking what there is"
    parts = [f"{progress.id}: {format_bytes(progress.done)} of {format_bytes(progress.total)}"]
    if progress.phase == "checking":
        parts.append("checking what is here")
    if progress.rate:
        parts.append(format_rate(progress.rate))
    if progress.eta_s and progress.phase != "done":
        parts.append(f"{duration(progress.eta_s)} left")
    return ", ".join(parts) + (f". {progress.note}" if progress.note else "")


def _command(subparsers: Any, name: str, run: Callable[[argparse.Namespace], Any], words: str) -> Any:
    parser = subparsers.add_parser(name, help=words, description=words)
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    parser.set_defaults(run=run)
    return parser


def _confirm(question: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise BadRequest("Nothing was removed.", "There is nobody to ask.", "Add --yes to remove without asking.")
    print(question, end="", flush=True, file=sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BadRequest("Nothing was removed.")


def _model_json(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id, "downloads": model.downloads, "likes": model.likes, "gated": model.gated,
        "license": model.license, "parameters": model.parameter_count or None, "bytes": model.weight_bytes or None,
        "updated": model.updated,
    }  # fmt: skip


def _download_json(result: Downloaded) -> dict[str, Any]:
    return {
        "id": result.id, "revision": result.revision, "path": str(result.path), "bytes": result.bytes,
        "downloaded_bytes": result.downloaded_bytes, "resumed_bytes": result.resumed_bytes,
        "verified": result.verified,
    }  # fmt: skip
