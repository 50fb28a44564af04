"""`chat`: one question, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from core.commands.arguments import add_json, add_machine_options, load_options
from core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loading,
    Message,
    Piece,
    Replanned,
    Request,
    Sampling,
    Stats,
    Truncated,
)
from core.startup.environment import importing


@dataclass
class Answer:
    """What came of one question."""

    text: str
    reasoning: str
    reason: FinishReason
    stats: Stats


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("chat", help="ask a model; without --prompt a conversation")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="a folder or a Hub id; the built-in guide if left out")
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--max-new-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--seed", type=int, metavar="N")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises HeteGenError."""
    with importing():
        from core.engine import Engine
    engine = Engine()
    show(engine.load(args.model, load_options(args)), sys.stderr)
    system = (Message("system", args.system),) if args.system else ()
    sampling = Sampling(temperature=args.temperature, seed=args.seed, max_new_tokens=args.max_new_tokens)
    if args.prompt is None:
        return _conversation(engine, system, sampling)
    question = Message("user", args.prompt)
    return as_json(show(engine.chat(Request((*system, question), sampling)), sys.stdout))


def show(events: Iterable[Event], out: Any) -> Answer:
    """Print what a person wants to see of the events; the collected answer. Raises the error of a Failed."""
    answer = Answer("", "", "stop", Stats())
    for event in events:
        match event:
            case Loading(phase, fraction):
                _progress(f"{phase} {fraction:.0%}")
            case Piece(text, kind):
                print(text, end="", flush=True, file=out)
                answer.text += text if kind == "answer" else ""
                answer.reasoning += text if kind == "reasoning" else ""
            case Truncated(messages, _):
                print(f"({messages} older messages no longer fit into the context)", file=sys.stderr)
            case Replanned(reason):
                print(f"({reason})", file=sys.stderr)
            case Finished(reason, stats):
                answer.reason, answer.stats = reason, stats
                print(file=out)
            case Failed(error):
                raise error
    _progress("")
    return answer


def as_json(answer: Answer) -> dict[str, Any]:
    """The contract's JSON object."""
    stats = answer.stats
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.reason,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "new_tokens": stats.new_tokens,
        "ttft_s": stats.ttft_s,
        "decode_tok_s": stats.mean_tok_s,
        "seed": stats.seed,
    }


def _conversation(engine: Any, system: tuple[Message, ...], sampling: Sampling) -> dict[str, Any]:
    messages, last = list(system), Answer("", "", "stop", Stats())
    print("Ask away; an empty line or Ctrl+D ends.", file=sys.stderr)
    while question := _ask():
        messages.append(Message("user", question))
        last = show(engine.chat(Request(tuple(messages), sampling)), sys.stdout)
        messages.append(Message("assistant", last.text, last.reasoning))
    return as_json(last)


def _ask() -> str:
    try:
        # Not input's own prompt: it would go to stdout, whose last line belongs to --json.
        print("> ", end="", flush=True, file=sys.stderr)
        return input().strip()
    except EOFError:
        return ""


def _progress(text: str) -> None:
    if sys.stderr and sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", flush=True, file=sys.stderr)
