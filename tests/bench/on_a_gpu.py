"""Checks and measures a real graphics card in one command of eight minutes, which can be resumed.

    python -m tests.bench.on_a_gpu [--minutes 8] [--out FOLDER]
    python -m tests.bench.on_a_gpu --dry-run        (a small model on a simulated card: shows that the script works)

Runs from source with torch, transformers, safetensors and psutil. Checks the card, compares tokens, checks memory
budgets, and measures strategies, accelerate's offloading if that is installed and, if the card reports it, energy. Each
row is printed and saved in FOLDER when it is known; saved rows are not measured again, unless they failed.
FOLDER/report.md is for an issue. Exits with 1 if the card failed a check or a budget was exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.accelerators.trial import tried
from core.gpu_runtime.start import activate
from core.gpu_runtime.store import Runtime
from core.paths import HOME_VARIABLE, gpu_runtime

STRATEGIES = ("hetegen", "stream", "cpu", "serial")
GIB = 2**30
DRY_CARD = ("--simulate-gpu", "vram=256MiB,link=2GB/s")
SAMPLE_S = 0.2
REPORT = "report.md"
CHECK = "self-check"
ENOUGH_S = 15.0
"""With less time left, no case is started."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One bench run of a shape or a folder, with a limit on the card's memory."""

    model: str
    vram_gib: float
    strategy: str = "hetegen"
    format: str = "bf16"
    prompt_tokens: int = 512
    new_tokens: int = 64

    @property
    def name(self) -> str:
        return f"{self.model} {self.format} {self.vram_gib:g} GiB {self.strategy}"

    def command(self, model: tuple[str, ...], device: tuple[str, ...]) -> list[str]:
        return [
            sys.executable, "-m", "core", "bench", *model, "--strategy", self.strategy, "--format", self.format,
            "--vram", f"{self.vram_gib}GiB", "--context", "1024", "--prompt-tokens", str(self.prompt_tokens),
            "--new-tokens", str(self.new_tokens), "--json", *device,
        ]  # fmt: skip


# By decreasing value: time may not suffice for all.
CASES = (
    *(Case("llama-3.1-8b", 8, strategy) for strategy in STRATEGIES),
    *(Case("opt-30b", 24, strategy, new_tokens=32) for strategy in STRATEGIES),
    Case("opt-6.7b", 80),
    Case("opt-6.7b", 80, "serial"),  # all of it resident, as before, but captured by no graph
    Case("qwen3-moe-8l", 4),
    Case("llama-3.1-8b", 8, format="int8"),
    Case("llama-3.1-8b", 8, format="int4"),
)
DRY_CASES = tuple(Case("small model", 0.03125, strategy, "int4", 16, 3) for strategy in ("hetegen", "stream"))
PEERS = (("opt-30b", 24.0), ("opt-6.7b", 80.0))
# Their limits are below the small model's weights (206 MB in fp32, 45 MB in int4), so that these are divided.
SAME_TOKENS = (Case("same tokens", 0.0, "cpu"), Case("same tokens", 0.125), Case("same tokens", 0.125, "stream"))
SAME = {True: "yes", False: "NO", None: "not compared"}
DRY_SAME_TOKENS = (SAME_TOKENS[0], SAME_TOKENS[1])


class Energy:
    """Joules used by a card while something runs, from nvidia-smi or rocm-smi; None if neither reports power."""

    COMMANDS = (
        ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"),
        ("rocm-smi", "--showpower", "--csv"),
    )

    def __init__(self) -> None:
        self._command = next((one for one in self.COMMANDS if shutil.which(one[0])), None)
        self._watts: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Energy:
        self._began = time.monotonic()
        if self._command:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.monotonic() - self._began
        self._done.set()
        if self._command:
            self._thread.join()

    @property
    def joules(self) -> float | None:
        return round(sum(self._watts) / len(self._watts) * self._seconds, 1) if self._watts else None

    def _watch(self) -> None:
        assert self._command
        while not self._done.wait(SAMPLE_S):
            told = subprocess.run(self._command, capture_output=True, text=True, check=False, timeout=10).stdout
            numbers = [word for word in told.replace(",", " ").split() if word.replace(".", "", 1).isdigit()]
            self._watts += [float(numbers[-1])] if numbers else []


def run(command: list[str], seconds: float) -> Row:
    """Run a command and return the JSON object on its last line, or the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": "no time left"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    result: Row = json.loads(lines[-1])
    return result


def self_check(device: tuple[str, ...]) -> Row:
    """Return the result of the engine's trial of the card, with the torch that this process would import."""
    if device:
        return {"name": "Simulated GPU", "why": ""}
    torch = find_spec("torch")
    found = asdict(tried(0, str(Path(torch.origin).parents[1]) if torch and torch.origin else ""))
    attempts = found.pop("abilities")["attempts"]
    found["works"] = ", ".join(one["name"] for one in attempts if one["works"])
    found["not used"] = ", ".join(f"{one['name']} {one['why']}".strip() for one in attempts if not one["works"])
    return found | {"error": found["why"]} if found["why"] else found


def benched(case: Case, model: tuple[str, ...], device: tuple[str, ...], seconds: float) -> Row:
    """Run one bench with an energy reading, and check the memory budget."""
    with Energy() as energy:
        row = run(case.command(model, device), seconds)
    row.pop("plan", None)
    row |= {"vram_gib": case.vram_gib, "strategy": case.strategy, "format": case.format, "joules": energy.joules}
    if row.get("peak_vram_bytes", 0) > case.vram_gib * GIB:
        row["error"] = "more memory of the card was used than allowed"
    return row


def with_accelerate(shape: str, vram_gib: float, seconds: float) -> Row:
    """Measure transformers with accelerate on the same shape."""
    command = [sys.executable, "-m", "tests.bench.transformers_offloaded", "--shape", shape]
    return run([*command, "--vram-gib", str(vram_gib)], seconds) | {"strategy": "accelerate"}


def small_model(folder: Path) -> Path:
    """Create, once, a random fp32 model that is large enough to be split."""
    from tests.core.families import make_model
    from tests.core.tiny_tokenizer import write_tokenizer

    path = folder / "model"
    if not (path / "tokenizer.json").exists():
        sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16}
        make_model("llama", path, spread=0.05, num_key_value_heads=8, **sizes)
        write_tokenizer(path)
    return path


def measured_model(case: Case, options: argparse.Namespace) -> tuple[str, ...]:
    """Return the bench's model arguments: a shape, or in a dry run the small model."""
    return (str(small_model(options.out)),) if options.dry_run else ("--shape", case.model)


def steps(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield each row's name, and a function that measures it within a number of seconds."""
    device = DRY_CARD if options.dry_run else ()
    yield CHECK, lambda seconds: self_check(device)
    for case in DRY_SAME_TOKENS if options.dry_run else SAME_TOKENS:
        case = Case(case.model, case.vram_gib, case.strategy, "bf16", 48, 8 if options.dry_run else 64)
        yield case.name, lambda seconds, case=case: benched(case, (str(small_model(options.out)),), device, seconds)
    for case in DRY_CASES if options.dry_run else CASES:
        yield case.name, lambda seconds, case=case: benched(case, measured_model(case, options), device, seconds)
    for shape, vram in PEERS if find_spec("accelerate") and not options.dry_run else ():
        name = f"{shape} bf16 {vram:g} GiB accelerate"
        yield name, lambda seconds, shape=shape, vram=vram: with_accelerate(shape, vram, seconds)


def same_tokens(rows: dict[str, Row]) -> bool | None:
    """Whether every split of the model gave the processor's own tokens; None with fewer than two results."""
    same = (row for name, row in rows.items() if name.startswith("same tokens"))
    hashes = [row["output_sha256"] for row in same if "output_sha256" in row]
    return None if len(hashes) < 2 else len(set(hashes)) == 1


def line(name: str, row: Row) -> str:
    """Format one row of the table."""
    if row.get("error"):
        return f"| {name} | {row['error']} | | | | | |"
    if "decode_tok_s" not in row:
        return f"| {name} | {', '.join(f'{key} {value}' for key, value in row.items() if value)} | | | | | |"
    peak = row.get("peak_vram_bytes", 0) / GIB
    return (
        f"| {name} | {row['decode_tok_s']} | {row.get('prefill_tok_s', '')} | {peak:.2f} | "
        f"{row.get('predicted_decode_tok_s', '')} | {row.get('efficiency', '')} | {row.get('joules') or ''} |"
    )


COLUMNS = ("run", "decode tok/s", "prefill tok/s", "peak GiB", "predicted tok/s", "efficiency", "joules")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def report(rows: dict[str, Row], missing: list[str]) -> str:
    """Format all rows as Markdown, and list what there was no time for."""
    import torch
    import transformers

    about = f"{platform.platform()}, torch {torch.__version__}, transformers {transformers.__version__}"
    checked = rows.get(CHECK, {})
    words = [f"HeteGen on a graphics card: {checked.get('name') or 'none'}", about, "", HEAD]
    words += [line(name, row) for name, row in rows.items()]
    if checked.get("error"):
        return "\n".join([*words, "", unusable(checked["error"])]) + "\n"
    words += ["", f"Same tokens under every division: {SAME[same_tokens(rows)]}"]
    words += [f"No time for: {', '.join(missing)}"] if missing else []
    return "\n".join(words) + "\n"


def unusable(why: str) -> str:
    """Say that the card's check failed, why, and what to do."""
    mend = "Where HeteGen is installed, `python -m core doctor` says what to mend. Then start this command again."
    return f"No card was measured. {why} {mend}"


def keep(kept: Path, rows: dict[str, Row]) -> None:
    """Write rows and report atomically: the run may be killed at any time."""
    for path, text in ((kept, json.dumps(rows)), (kept.with_name(REPORT), report(rows, ["what comes after these"]))):
        unfinished = path.with_suffix(".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


def measure(options: argparse.Namespace, kept: Path) -> tuple[dict[str, Row], list[str]]:
    """Measure all rows that time allows; return them and the names of the others."""
    until = time.monotonic() + 60 * options.minutes
    saved: dict[str, Row] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    rows = {name: row for name, row in saved.items() if not row.get("error")}
    missing: list[str] = []
    print(HEAD, flush=True)
    for name, work in steps(options):
        left = until - time.monotonic()
        if name not in rows and left < ENOUGH_S:
            missing.append(name)
            continue
        row = rows[name] if name in rows else work(left)
        print(line(name, row), flush=True)
        if row.get("error") == "no time left":
            missing.append(name)
            continue
        rows[name] = row
        keep(kept, rows)
        if name == CHECK and row.get("error"):
            print(unusable(row["error"]))
            break
    return rows, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "hetegen-on-a-gpu")
    options = parser.parse_args()
    if options.dry_run:
        options.out = options.out / "dry-run"
    options.out.mkdir(parents=True, exist_ok=True)
    if find_spec("platformdirs") is None:  # knows the machine's folders for profiles
        os.environ.setdefault(HOME_VARIABLE, str(options.out / "home"))
    activate(Runtime(gpu_runtime()))
    rows, missing = measure(options, options.out / "rows.json")
    (options.out / REPORT).write_text(report(rows, missing), encoding="utf-8")
    failed = [name for name, row in rows.items() if row.get("error")]
    print(f"Report: {options.out / REPORT}")
    print(json.dumps({"rows": rows, "missing": missing, "failed": failed, "same_tokens": same_tokens(rows)}))
    return int(bool(failed) or same_tokens(rows) is False)


if __name__ == "__main__":
    sys.exit(main())
