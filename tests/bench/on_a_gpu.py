"""All that a real graphics card has to show, in one call: gpu-marked tests, strategies, plain offloading, residency.

    python -m tests.bench.on_a_gpu --peer ACCELERATE_SCRIPT [--minutes 9] [--out FOLDER]
    python -m tests.bench.on_a_gpu --dry-run        (small shapes on the simulated device; shows that the script works)

Prints a table row as soon as it is known, and one JSON object last. Rows that time does not allow for are named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One bench run. `peer` adds plain offloading with the same cap."""

    shape: str
    vram_gib: float
    strategy: str
    prompt_tokens: int = 512
    new_tokens: int = 64
    format: str = "bf16"


PAPER = "opt-30b"
CASES = (
    *(Case(PAPER, 24, strategy) for strategy in ("hetegen", "cpu", "stream", "serial")),
    *(Case("llama-3.1-8b", 8, strategy) for strategy in ("hetegen", "cpu", "stream", "serial")),
    Case("llama-3.1-8b", 8, "hetegen", format="int8"),
    Case("llama-3.1-8b", 8, "hetegen", format="int4"),
    Case("opt-6.7b", 80, "hetegen"),
)
PEERS = ((PAPER, 24.0), ("opt-6.7b", 80.0))
DRY_CASES = tuple(Case("qwen2.5-0.5b", 0.25, strategy, 32, 4) for strategy in ("hetegen", "cpu", "stream", "serial"))
DRY_DEVICE = "vram=256MiB,link=2GB/s"


def bench(case: Case, device: list[str], seconds: float) -> dict[str, Any]:
    """The JSON object of one run, or what went wrong."""
    command = [
        sys.executable, "-m", "core", "bench", "--shape", case.shape, "--strategy", case.strategy, "--json",
        "--format", case.format, "--vram", f"{case.vram_gib}GiB", "--context", "1024",
        "--prompt-tokens", str(case.prompt_tokens), "--new-tokens", str(case.new_tokens), *device,
    ]  # fmt: skip
    return run(command, seconds)


def run(command: list[str], seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": "no time left"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def results(options: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """All rows, in the order of their worth."""
    device = ["--simulate-gpu", DRY_DEVICE] if options.dry_run else []
    for case in DRY_CASES if options.dry_run else CASES:
        found = bench(case, device, max(1.0, until - time.monotonic()))
        found.pop("plan", None)
        yield {"engine": "hetegen", "shape": case.shape, "vram_gib": case.vram_gib, "strategy": case.strategy} | found
    for shape, vram in PEERS if options.peer else ():
        command = [sys.executable, options.peer, "--shape", shape, "--vram-gib", str(vram), "--new-tokens", "16"]
        yield {"strategy": "accelerate"} | run(command, max(1.0, until - time.monotonic()))


def table_row(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row.get('shape', ''):14} {row['strategy']:10} {row['error']}"
    peak = row.get("peak_vram_bytes", 0) / 2**30 or row.get("peak_vram_gib", 0)
    return (
        f"{row['shape']:14} {row['strategy']:10} {row['vram_gib']:6} GiB  decode {row['decode_tok_s']:8}  prefill "
        f"{row['prefill_tok_s']:9}  peak {peak:6.2f} GiB  predicted {row.get('predicted_decode_tok_s', '')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="SCRIPT", help="measures transformers with accelerate; one JSON line last")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], check=False)
    rows = []
    for row in results(options, until):
        rows.append(row)
        print(table_row(row), flush=True)
    report = json.dumps({"gpu_tests_exit": tests.returncode, "rows": rows})
    if options.out:
        (options.out / "results.json").write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
