"""Tries a newly found card in a separate process, so that a crash of its driver does not end the program.

    python -m core.accelerators.trial [INDEX [PACKAGES [WITHOUT]]]   prints a Trial as JSON in its last line

PACKAGES is the folder of the torch to use: the other process must not find a different one than this program. WITHOUT
names steps to leave out, separated by commas. Before each step a line names it, so that a driver that crashes or hangs
costs what was tried then and nothing else: the card is tried again without that step.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO

from core.errors import HeteGenError
from core.own_process import END_S, command, ends, source_folder, without_crash_windows, without_window
from core.spec import NO_TRIAL, Abilities, Attempt, parse_abilities
from core.startup.torch_folder import use_packages

ARGUMENT = "--try-card"
"""The argument that makes a bundle's own executable, which has no Python beside it, call `main`."""
LIMIT_S = 120.0
"""For each step. The first one imports torch and compiles, the others may compile kernels, too."""
LAST_WORDS = 200
"""Characters of what the driver said last."""


@dataclass(frozen=True)
class Trial:
    """The result of a trial. `why`: a sentence, "" for a usable card. Rates are in bytes per second."""

    why: str
    name: str = ""
    kind: str = ""
    unified: bool = False
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0
    graphs: bool = False
    in_place: bool = False
    abilities: Abilities = NO_TRIAL


@dataclass(frozen=True)
class Step:
    """A step of a trial that begins. `needed`: the card is not used without it."""

    name: str = ""
    needed: bool = True


def tried(index: int, packages: str = "") -> Trial:
    """Try a card in other processes with the torch in this folder, by default this process's.

    Takes some seconds, mostly to import torch, and as many again for each step in which the driver fails.
    """
    failed: list[Attempt] = []
    while True:
        trial, step = _another_process(index, packages or _own_packages(), [one.name for one in failed])
        if not trial.why:
            attempts = (*trial.abilities.attempts, *failed)
            return replace(trial, abilities=replace(trial.abilities, attempts=attempts))
        if step.needed or step.name in [one.name for one in failed]:
            return trial
        failed.append(Attempt(step.name, False, trial.why))


def main(index: int = 0, packages: str = "", without: str = "") -> None:
    """Try the card, in the other process; print the steps as they begin, and the result."""
    without_crash_windows()
    if packages:
        use_packages(Path(packages))
    try:
        from core.accelerators.card import cards
        from core.accelerators.card_checks import try_card

        found = cards()
        if index < len(found):
            trial = try_card(found[index], without.split(","), _say)
        else:
            trial = Trial("The installed torch finds no card.")
    except (HeteGenError, RuntimeError, ImportError, OSError) as error:
        trial = Trial(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(json.dumps(asdict(trial)), flush=True)
    # Skip unloading, in which a faulty driver may hang or crash.
    os._exit(0)


def _say(step: Step) -> None:
    print(json.dumps({"begins": asdict(step)}), flush=True)


def _own_packages() -> str:
    import torch

    return str(Path(torch.__file__).parents[1])


def _another_process(index: int, packages: str, without: Sequence[str]) -> tuple[Trial, Step]:
    """Return the result of one process, and the last step that it began."""
    asked = command("core.accelerators.trial", ARGUMENT, str(index), packages, ",".join(without))
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                asked, cwd=source_folder(), stdout=subprocess.PIPE, stderr=errors, creationflags=without_window()
            )
        except OSError as error:
            return Trial(f"It could not be tried: {error.strerror or error}."), Step()
        trial, step = _followed(process, errors)
        if ends(process):
            return trial, step
        return Trial("Its driver holds the program that tried it, so that it cannot be ended."), Step()


def _followed(process: subprocess.Popen[bytes], errors: IO[bytes]) -> tuple[Trial, Step]:
    """Return what the process says, or why it says nothing more, and the last step that it began."""
    assert process.stdout is not None
    lines: queue.Queue[bytes] = queue.Queue()
    Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    step, until = Step(), time.monotonic() + LIMIT_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return Trial(f"It did not answer within {LIMIT_S:g} seconds when it was tried."), step
        if not line:
            return Trial(_last_words(process, errors)), step
        said = parse_line(line)
        if isinstance(said, Trial):
            return said, step
        if isinstance(said, Step):
            step, until = said, time.monotonic() + LIMIT_S


def _read(output: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Pass all lines on, and b"" at the end."""
    with output:
        for line in output:
            lines.put(line)
    lines.put(b"")


def parse_line(line: bytes) -> Trial | Step | None:
    """Return what a line says; None for a driver's own output."""
    try:
        said = json.loads(line.decode("utf-8", "replace"))
        if "begins" in said:
            return Step(**said["begins"])
        return Trial(**said | {"abilities": parse_abilities(said["abilities"])})
    except (ValueError, TypeError, KeyError):
        return None


def _last_words(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """Return why a process ended that gave no result."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    code = process.returncode or 0
    names = {-one.value: one.name for one in signal.Signals}
    # Windows reports crashes by large numbers that are known in this form.
    ended = names.get(code) or (f"0x{code:X}" if code > 0xFFFF else str(code))
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    said = f": {lines[-1].strip()[:LAST_WORDS]}" if lines else "."
    return f"The driver ended the program that tried it (exit code {ended}){said}"


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["0"])[0]), *sys.argv[2:4])
