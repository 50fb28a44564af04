"""`files`: the GGUF models of a repository, and how each would run on this machine. Reads only headers."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from core.api import judge_files
from core.commands.arguments import add_json, add_machine_options, load_options
from core.commands.models import make_client
from core.hub.fit import Kind
from core.hub.gguf_choices import Judged, best_choice
from core.units import format_bytes

VERDICTS: dict[Kind, str] = {"fits": "fits", "cpu_help": "runs with CPU help", "slow": "slow", "no": "will not fit"}


def add(subparsers: Any) -> None:
    """Add the command `files` and its options."""
    parser = subparsers.add_parser("files", help="the GGUF files of a repository, and which suits this machine")
    parser.add_argument("model", metavar="ID[@REVISION]")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print each file with its size and verdict, and mark the recommended one. Raises HeteGenError."""
    judged = judge_files(args.model, load_options(args), make_client)
    best = best_choice(judged)
    for one in judged:
        print(f"{'*' if one is best else ' '} {_line(one)}")
    return [as_json(one, is_best=one is best) for one in judged]


def as_json(one: Judged, *, is_best: bool) -> dict[str, Any]:
    """Return one choice as a JSON object."""
    choice, fit = one.choice, one.fit
    return {
        "file": choice.path, "kind": choice.kind, "parts": len(choice.files), "bytes": choice.nbytes,
        "recommended": is_best, "fits": fit.kind if fit else None, "reason": fit.reason if fit else str(one.error),
        "decode_tok_s": asdict(fit.tok_s) if fit else None,
    }  # fmt: skip


def _line(one: Judged) -> str:
    size = f"{one.choice.label:16} {format_bytes(one.choice.nbytes):>9}"
    parts = f" in {len(one.choice.files)} parts" if len(one.choice.files) > 1 else ""
    if one.fit is None:
        return f"{size}{parts}  {one.error}"
    speed = "" if one.fit.kind == "no" else f", about {one.fit.tok_s.low:.1f} to {one.fit.tok_s.high:.1f} tokens/s"
    return f"{size}{parts}  {VERDICTS[one.fit.kind]}{speed}"
