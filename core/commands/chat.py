"""`chat`: one question, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from core.api import Answer, Model, load_with
from core.commands.arguments import add_json, add_machine_options, load_options
from core.documents.picture import prepared
from core.errors import BadRequest, HeteGenError
from core.events import (
    Event,
    Finished,
    Loading,
    Message,
    Piece,
    Replanned,
    Request,
    Sampling,
    Truncated,
)
from core.sentence import sentence
from core.units import format_share

PROGRESS_WIDTH = 40
"""Columns of the terminal line that progress may fill."""


def add(subparsers: Any) -> None:
    """Add the command `chat` and its options."""
    parser = subparsers.add_parser("chat", help="ask a model; without --prompt a conversation")
    which = parser.add_mutually_exclusive_group()
    # Without SUPPRESS, the default of a missing MODEL would overwrite the value of --model.
    which.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS,
        help="a folder or a Hub id; the built-in guide if left out",
    )  # fmt: skip
    which.add_argument("--model", metavar="MODEL", help="the same")
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument("--picture", metavar="FILE", action="append", default=[], help="show it with --prompt")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--max-new-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--seed", type=int, metavar="N")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer one question, or hold a conversation. Raises HeteGenError."""
    from core.generation.sampler import check  # not earlier: it loads torch

    if args.picture and args.prompt is None:
        raise BadRequest("A picture needs a question.", "", "Ask it with --prompt.")
    system = (Message("system", args.system),) if args.system else ()
    sampling = Sampling(temperature=args.temperature, seed=args.seed, max_new_tokens=args.max_new_tokens)
    check(sampling)  # before the user waits for a model
    with load_with(args.model, load_options(args), show_progress) as model:
        if args.prompt is None:
            return _conversation(model, system, sampling)
        question = Message("user", args.prompt, pictures=tuple(map(_picture, args.picture)))
        return as_json(show(model.events(Request((*system, question), sampling))))


def _picture(name: str) -> bytes:
    """Read a picture file. Raises BadRequest."""
    try:
        return prepared(Path(name).read_bytes())
    except OSError as error:
        reason = sentence("{}.", error.strerror or error)
        raise BadRequest(sentence("{} cannot be read.", name), reason, "Check the file.") from error


def show(events: Iterable[Event]) -> Answer:
    """Print a reply as a user wants to see it; return the collected answer."""
    answer, kind = Answer(), ""
    for event in events:
        answer.add(event)
        match event:
            case Piece(text):
                turned = kind not in ("", event.kind)  # from reasoning to the answer
                print(f"\n\n{text}" if turned else text, end="", flush=True)
                kind = event.kind
            case Truncated(messages, _):
                print(f"({messages} older messages no longer fit into the context)", file=sys.stderr)
            case Replanned(reason):
                print(f"({reason})", file=sys.stderr)
            case Finished():
                print()
            case _:
                pass
    return answer


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the command's JSON object."""
    stats = answer.stats
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "new_tokens": stats.new_tokens,
        "ttft_s": stats.ttft_s,
        "decode_tok_s": stats.mean_tok_s,
        "drafter": stats.drafter,
        "tokens_per_pass": stats.tokens_per_pass,
        "acceptance": stats.acceptance,
        "seed": stats.seed,
    }


def _conversation(model: Model, system: tuple[Message, ...], sampling: Sampling) -> dict[str, Any]:
    messages, last = list(system), Answer()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # piped questions may be in any encoding
    print("Ask away; an empty line or Ctrl+D ends.", file=sys.stderr)
    while question := _ask():
        asked = (*messages, Message("user", question))
        try:
            last = show(model.events(Request(asked, sampling)))
        except HeteGenError as error:
            print(f"error: {error}", file=sys.stderr)  # the next question may still succeed
            continue
        messages = [*asked, Message("assistant", last.text, last.reasoning)]
    return as_json(last)


def _ask() -> str:
    try:
        # Not input()'s prompt, which goes to stdout, whose last line is reserved for --json.
        print("> ", end="", flush=True, file=sys.stderr)
        return input().strip() if sys.stdin else ""  # a closed one is None
    except EOFError:
        return ""


def show_progress(step: Loading) -> None:
    """Update one terminal line while a model is loaded."""
    if sys.stderr and sys.stderr.isatty():
        text = "" if step.fraction >= 1 else f"{step.phase} {format_share(step.fraction)}"
        # Spaces, not escape codes, which some Windows consoles print as characters.
        print(f"\r{text:{PROGRESS_WIDTH}}\r{text}", end="", flush=True, file=sys.stderr)
