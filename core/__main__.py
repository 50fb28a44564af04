"""The engine without a window: `python -m core COMMAND`. Exit 0 done, 1 a failure a user can act on, 2 usage."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Sequence

from core.commands import bench, chat, doctor, files, models, plan, quality, serve
from core.errors import DiskFull, HeteGenError, NotEnoughMemory
from core.gpu_runtime.start import activate
from core.gpu_runtime.store import Runtime
from core.paths import cache_folder, command_log, gpu_runtime
from core.sentence import sentence
from core.startup.environment import prepare_environment
from core.startup.log import start_log
from core.startup.transformers_index import keep_model_index

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 after a failure, which is reported on stderr in a sentence."""
    prepare_environment()
    keep_model_index(cache_folder())
    _use_utf8()
    args = _parser().parse_args(argv)
    start_log(command_log(), logging.WARNING)
    try:
        activate(Runtime(gpu_runtime()))
        result = args.run(args)
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        if sys.stdout is not None:
            sys.stdout.flush()
    except HeteGenError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _failed("stopped.")
    except Exception as error:
        if _is_closed_output(error):  # by its reader, as `head` does
            _drop_output()
            return 1
        if (lack := _lack(error)) is not None:
            _drop_output()  # which may be what cannot be written
            return _failed(lack)
        # A defect: log its traceback for the developers.
        log.exception("A command failed unexpectedly")
        return _failed(sentence("This is a defect of the program; the details are in {}.", command_log()))
    return 0


def _is_closed_output(error: Exception) -> bool:
    """Return whether a pipe's other end is closed. Windows' C library then raises an error of no file in particular;
    those of the system's own calls have a number."""
    if not isinstance(error, OSError) or error.errno != errno.EINVAL:
        return isinstance(error, BrokenPipeError)
    return error.filename is None and getattr(error, "winerror", None) is None


def _lack(error: Exception) -> HeteGenError | None:
    """Return the failure to report where the system lacks something; None for any other error."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFull("The output cannot be written.", "The disk is full.", "Make room on it.")
    if isinstance(error, MemoryError):
        return NotEnoughMemory("There is too little memory to begin.", "", "Close other programs.")
    return None


def _drop_output() -> None:
    """Discard what is still to be printed, which would fail again at the end of the process."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(why: HeteGenError | str) -> int:
    print(f"error: {' '.join(str(why).split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (chat, serve, plan, files, bench, quality, doctor):
        command.add(subparsers)
    models.add_commands(subparsers)
    return parser


def _use_utf8() -> None:
    # Windows consoles default to a legacy code page, which cannot print what models write.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
