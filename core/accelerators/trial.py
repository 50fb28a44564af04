"""A card tried in a process of its own, when it is first met: whatever its driver does there, the program goes on.

    python -m core.accelerators.trial [INDEX]        prints one JSON object, whose `why` is "" where all went well

What is tried: a product in bf16, copies each way with events, our own kernels against torch; all of it timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from core.accelerators.capabilities import has_unified_memory, name_of
from core.accelerators.card import Card, cards
from core.errors import HeteGenError
from core.kernels.cuda_dequant import device_kernels
from core.kernels.device_products import multiplies_int8
from core.units import MIB

ARGUMENT = "--try-card"
"""With which a bundle's own program, having no Python beside it, does what `main` does."""
LIMIT_S = 120
SIDE, COPY = 512, 16 * MIB
TOLERANCE = 0.02
"""Of the largest number of a product: rounding to bf16 makes less of it."""


@dataclass(frozen=True)
class Trial:
    """What came of it. `why`: a sentence, "" for a card that can be used; rates in bytes per second."""

    why: str
    name: str = ""
    kind: str = ""
    unified: bool = False
    own_kernels: bool = False
    int8_product: bool = False
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0


def tried(index: int) -> Trial:
    """Try a card in another process; takes some seconds, most of them to import torch there."""
    if getattr(sys, "frozen", False):
        command = [sys.executable, ARGUMENT, str(index)]
    else:
        command = [sys.executable, "-m", "core.accelerators.trial", str(index)]
    root = Path(__file__).resolve().parents[2]
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    try:
        done = subprocess.run(
            command, cwd=root if root.is_dir() else None, capture_output=True, timeout=LIMIT_S, check=False,
            creationflags=flags,
        )  # fmt: skip
        return Trial(**json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Trial(f"It did not answer within {LIMIT_S} seconds when it was tried.")
    except OSError as error:
        return Trial(f"It could not be tried: {error.strerror or error}.")
    except (IndexError, ValueError, TypeError):
        return Trial(f"The driver ended the program that tried it (exit code {done.returncode}).")


def try_card(device: torch.device) -> Trial:
    """All that is tried, in this process. Raises HeteGenError, RuntimeError."""
    card = Card(device)
    if not multiplies(card):
        return Trial("It multiplied wrongly when it was tried.", name_of(device), device.type)
    up_s, down_s, whole = copies(card)
    if not whole:
        return Trial("Copies to it and back came back changed when it was tried.", name_of(device), device.type)
    own = card.can.own_kernels and device_kernels(device) is not None
    found = Trial(
        "", name_of(device), device.type, has_unified_memory(device), own, multiplies_int8(device), COPY / up_s,
        COPY / down_s,
    )  # fmt: skip
    card.close()
    return found


def multiplies(card: Card) -> bool:
    """Whether a product in bf16 is that of the processor."""
    left, right = (torch.randn(SIDE, SIDE).bfloat16() for _ in range(2))
    found = card.to_host(card.to_device(left) @ card.to_device(right)).result()
    return _agree(found.float(), left.float() @ right.float())


def copies(card: Card) -> tuple[float, float, bool]:
    """Seconds of a copy up and of one down, and whether every byte came back; ordered by events alone."""
    source, back, there = card.pinned(COPY), card.pinned(COPY), card.empty((COPY,), torch.uint8)
    source.copy_(torch.randint(0, 256, (COPY,), dtype=torch.uint8))
    up, down, arrived, read = card.stream(), card.stream(), card.event(), card.event()
    card.synchronize()
    start = time.perf_counter()
    card.copy_async(there, source, up)
    arrived.record(up)
    card.wait(arrived)
    doubled: list[torch.Tensor] = []
    card.launch(lambda: doubled.append(there + 1))
    card.record(read)
    arrived.synchronize()
    arrived_s = time.perf_counter() - start
    down.wait(read)
    start = time.perf_counter()
    card.copy_async(back, doubled[0], down)
    down.synchronize()
    return arrived_s, time.perf_counter() - start, torch.equal(back, source + 1)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def main(index: int = 0) -> None:
    """Try the card, in the other process, and print one line of JSON, last."""
    try:
        found = cards()
        trial = try_card(found[index]) if index < len(found) else Trial("The installed torch finds no card.")
    except (HeteGenError, RuntimeError) as error:
        trial = Trial(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(json.dumps(asdict(trial)), flush=True)
    # A driver that failed may hang or crash when libraries are unloaded, after all has been said.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
