"""`quality`: the quality loss of a format on a text, compared with the weights as stored."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.commands.arguments import add_json, add_machine_options, load_options, with_files
from core.errors import BadRequest
from core.sentence import sentence
from core.spec import FormatWish, KvFormat


def add(subparsers: Any) -> None:
    """Add the command `quality` and its options."""
    parser = subparsers.add_parser("quality", help="how much a format of weights or KV cache loses on a text")
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("text", metavar="TEXTFILE", type=Path, help="a text of some pages, UTF-8")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare both formats, print the result and return it. Raises HeteGenError."""
    text = _read(args.text)
    from core.runtime.quality import compare

    exact = _load(args, "bf16", "bf16")
    try:
        ids = exact.tokenizer.encode(text)
        other = exact if (args.format, args.kv) == ("bf16", "bf16") else _load(args, args.format, args.kv)
        try:
            found = compare(exact, other, ids)
        finally:
            if other is not exact:
                other.close()
    finally:
        exact.close()
    result = {
        "format": other.plan.format,
        "kv": other.plan.kv,
        "bytes": exact.spec.weight_bytes(other.plan.format),
        "perplexity": round(found.perplexity, 4),
        "top1": round(found.top1, 5),
        "kl": round(found.kl, 6),
        "tokens": found.tokens,
        "perplexity_as_stored": round(found.exact_perplexity, 4),
    }
    for name, value in result.items():
        print(f"{name:24} {value}")
    return result


def _load(args: argparse.Namespace, format: FormatWish, kv: KvFormat) -> Any:
    """Load the model with these weight and KV cache formats, without drafting. Raises HeteGenError."""
    from dataclasses import replace

    from core.events import NO_DRAFT
    from core.runtime.loaded_model import LoadedModel
    from core.runtime.loader import load_model

    options = replace(load_options(args), format=format, kv=kv, draft=NO_DRAFT, context=args.context or 1024)
    return next(step for step in load_model(with_files(args.model), options) if isinstance(step, LoadedModel))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            sentence("The text {} cannot be read.", file.name), "", "Choose a text file in UTF-8."
        ) from error
