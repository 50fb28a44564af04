"""Arguments shared by several commands, and how a model is named on the command line."""

from __future__ import annotations

import argparse

from core.errors import BadRequest
from core.events import LOOKUP, LoadOptions
from core.paths import SHAPE_PREFIX
from core.remote.endpoint import PREFIX as REMOTE_PREFIX
from core.spec import KV_FORMATS
from core.units import parse_size


def size(text: str) -> int:
    """Parse a size argument; an argparse type."""
    try:
        return parse_size(text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the resource limits and formats of every command that plans or runs a model."""
    group = parser.add_argument_group("what may be used")
    group.add_argument("--vram", type=size, metavar="SIZE", help="at most this much memory of the graphics card")
    group.add_argument("--ram", type=size, metavar="SIZE", help="at most this much main memory")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument("--context", type=int, metavar="N", help="context in tokens")
    group.add_argument("--format", choices=("auto", "bf16", "int8", "int4"), default="auto", help="weight format")
    group.add_argument(
        "--kv", choices=KV_FORMATS, default="bf16", help="keys and values: as computed, or in 8 bits (half the memory)"
    )
    group.add_argument(
        "--whole-head", action="store_true", help="no copy of the output head in 4 bits that a token reads first"
    )
    group.add_argument(
        "--draft", default=LOOKUP, metavar="WHO",
        help="who drafts ahead: auto, lookup, self (an int4 copy), mtp (the model's own head for it), off, or a small "
        "model of the same vocabulary, or gemma 4's assistant",
    )  # fmt: skip
    group.add_argument("--simulate-gpu", metavar="SPEC", help="vram=6GiB,link=12GB/s[,gpu=200GB/s][,cores=2]")


def load_options(args: argparse.Namespace) -> LoadOptions:
    """Return the limits and formats that the user asked for."""
    return LoadOptions(
        context=args.context,
        format=args.format,
        kv=args.kv,
        vram=args.vram,
        ram=args.ram,
        threads=args.threads,
        simulate_gpu=args.simulate_gpu,
        draft=args.draft,
        whole_head=args.whole_head,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments MODEL and --shape NAME, exactly one of which is required."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL", help="a folder or a Hub id")
    which.add_argument("--shape", metavar="NAME", help="random weights of a known model's dimensions")


def model_name(args: argparse.Namespace) -> str:
    """Return the model's name in the form that `open_source` takes. Raises BadRequest for one on another computer."""
    return f"{SHAPE_PREFIX}{args.shape}" if args.shape else with_files(str(args.model))


def with_files(name: str) -> str:
    """Return a model's name unless it is one on another computer. Raises BadRequest."""
    if name.startswith(REMOTE_PREFIX):
        raise BadRequest(
            "This command needs the model's files.", "A model on another computer has none here.",
            "Name a folder, a GGUF file or a Hub id.",
        )  # fmt: skip
    return name
