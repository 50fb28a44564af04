"""The engine without a window: `python -m core COMMAND`. Exit 0 done, 1 a failure a user can act on, 2 usage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from core.commands import bench, chat, doctor, files, models, plan, quality, serve
from core.errors import HeteGenError
from core.gpu_runtime.start import activate
from core.gpu_runtime.store import Runtime
from core.paths import cache_folder, gpu_runtime
from core.startup.environment import prepare_environment
from core.startup.transformers_index import keep_model_index


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 after a failure that the user can act on."""
    prepare_environment()
    keep_model_index(cache_folder())
    args = _parser().parse_args(argv)
    _use_utf8()
    activate(Runtime(gpu_runtime()))
    try:
        result = args.run(args)
    except HeteGenError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped.", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (chat, serve, plan, files, bench, quality, doctor):
        command.add(subparsers)
    models.add_commands(subparsers)
    return parser


def _use_utf8() -> None:
    # Windows consoles still begin in an old code page, which cannot print what models write.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
