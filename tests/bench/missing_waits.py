"""Mutation test of waits and copies between devices, and of captured passes: removes one at a time, runs the tests.

    python -m tests.bench.missing_waits [--only TEXT] [--skip N] [--count N]

Prints a table of what was removed and the first test that failed. Each mutant is a copy of `core` in a temporary
folder. Not part of the test suite because it takes minutes. Exits with 1 if a mutant survived.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis  # noqa: F401  imported before forking, as transformers is
import pytest
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

from tests.bench.capture_mutants import CAPTURES
from tests.bench.layer_mutants import LAYERS
from tests.bench.mutants import CONTROL, DIVIDED_HEADS, MOVES, WAITS, Mutant

ROOT = Path(__file__).resolve().parents[2]
ALL = (*WAITS, *MOVES, *CAPTURES, *DIVIDED_HEADS, *LAYERS)
LIMIT_S, OUTPUT = 300, "said.txt"


def outcome(mutant: Mutant) -> str:
    """Return the first test that failed, '' if none did."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("core", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name))  # with compiled files: those of a changed one are ignored
        for name in ("pyproject.toml", "assets"):
            Path(folder, name).symlink_to(ROOT / name)
        path = Path(folder, "core", mutant.file)
        source = path.read_text(encoding="utf-8")
        if mutant.old not in source:
            raise SystemExit(f"{mutant.file} has changed: {mutant.old!r} is not there")
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        return _outcome(Path(folder), mutant)


def _outcome(folder: Path, mutant: Mutant) -> str:
    # Forked, with torch and transformers imported already: importing takes longer than most of the tests.
    child = multiprocessing.get_context("fork").Process(target=_test, args=(folder, mutant))
    child.start()
    child.join(LIMIT_S)
    if child.is_alive():
        child.kill()
        child.join()
        return f"no end within {LIMIT_S} s"
    if child.exitcode == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(f"no test is named like this: {mutant.tests}")
    said = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in said if line.startswith(("FAILED", "ERROR")) and "::" in line]
    if failed:
        return failed[0].split("::", 1)[1].split(" - ")[0]
    if child.exitcode == -signal.SIGSEGV:
        return "a fault ended the process"
    return f"the process ended ({child.exitcode}): {said[-1] if said else ''}" if child.exitcode else ""


def _test(folder: Path, mutant: Mutant) -> None:
    """Run a folder's tests with its `core`, in the child process."""
    os.chdir(folder)
    said = os.open(OUTPUT, os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("core", "tests")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, "-k", mutant.tests, *(f"tests/core/{file}" for file in mutant.files)])
    sys.stdout.flush()
    os._exit(int(code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose description contains this")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N")
    parser.add_argument("--count", type=int, metavar="N", help="and end after N")
    options = parser.parse_args()
    if found := outcome(CONTROL):
        raise SystemExit(f"with nothing removed, this fails: {found}")
    survived = 0
    chosen = [one for one in ALL[options.skip :] if options.only in one.what]
    for mutant in chosen[: options.count]:
        found = outcome(mutant)
        survived += not found
        print(f"| {mutant.what} | {mutant.file} | {found or 'SURVIVED'} |", flush=True)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
