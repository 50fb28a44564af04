"""Tries a newly found card in a separate process, so that a crash of its driver does not end the program.

    python -m core.accelerators.trial [INDEX [PACKAGES]]   prints a JSON object, whose `why` is "" if all went well

PACKAGES is the folder of the torch to use: the other process must not find a different one than this program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from core.errors import HeteGenError
from core.own_process import command, source_folder, without_window
from core.startup.torch_folder import use_packages

ARGUMENT = "--try-card"
"""The argument that makes a bundle's own executable, which has no Python beside it, call `main`."""
LIMIT_S = 120


@dataclass(frozen=True)
class Trial:
    """The result of a trial. `why`: a sentence, "" for a usable card. Rates are in bytes per second.

    `int8_product` and `int4_product`: torch multiplies such weights there without dequantising them.
    """

    why: str
    name: str = ""
    kind: str = ""
    unified: bool = False
    own_kernels: bool = False
    int8_product: bool = False
    int4_product: bool = False
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0
    graphs: bool = False
    in_place: bool = False


def tried(index: int) -> Trial:
    """Try a card in another process with this process's torch; takes some seconds, mostly to import torch."""
    import torch

    asked = command("core.accelerators.trial", ARGUMENT, str(index), str(Path(torch.__file__).parents[1]))
    try:
        done = subprocess.run(
            asked, cwd=source_folder(), capture_output=True, timeout=LIMIT_S, check=False,
            creationflags=without_window(),
        )  # fmt: skip
        said, why = done.stdout, f"The driver ended the program that tried it (exit code {done.returncode})."
    except subprocess.TimeoutExpired as late:
        said, why = late.stdout or b"", f"It did not answer within {LIMIT_S} seconds when it was tried."
    except OSError as error:
        return Trial(f"It could not be tried: {error.strerror or error}.")
    try:
        return Trial(**json.loads(said.decode("utf-8", "replace").strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return Trial(why)


def main(index: int = 0, packages: str = "") -> None:
    """Try the card, in the other process, and print one line of JSON as the last output."""
    if packages:
        use_packages(Path(packages))
    try:
        from core.accelerators.card import Card, cards
        from core.accelerators.card_checks import reads_in_place, replays, try_card

        found = cards()
        trial = try_card(found[index]) if index < len(found) else Trial("The installed torch finds no card.")
    except (HeteGenError, RuntimeError, ImportError, OSError) as error:
        trial = Trial(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(json.dumps(asdict(trial)), flush=True)
    # Last, and reported separately: a driver that fails here only loses graphs or copies weights, not the card.
    if not trial.why and replays(Card(found[index])):
        trial = replace(trial, graphs=True)
        print(json.dumps(asdict(trial)), flush=True)
    if not trial.why and trial.unified and reads_in_place(Card(found[index])):
        print(json.dumps(asdict(replace(trial, in_place=True))), flush=True)
    # Skip unloading, in which a faulty driver may hang or crash.
    os._exit(0)


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["0"])[0]), (sys.argv[2:3] or [""])[0])
