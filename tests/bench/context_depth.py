"""Measures how much a long context slows decoding, for this engine and llama.cpp, in alternating processes.

    python -m tests.bench.context_depth --gguf FILE [--shape llama-3.2-1b] [--format int8] [--depths 256,4096]
        [--rounds 2] [--threads 2] [--new-tokens 32] [--peer-python PYTHON]

FILE: the same shape as GGUF, as written by the peers' scripts. The last line is one JSON object: tokens/s at each
depth, and the share of the first depth's speed left at the last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOM = 64
BATCH = 512


def at_depths(depths: Sequence[int], new_tokens: int, read: Callable[[list[int]], object], vocab: int) -> list[float]:
    """Return tokens/s at each depth of context; `read` appends ids to the context."""
    rng, known, rates = random.Random(0), 0, []
    for depth in depths:
        while known < depth:
            count = min(BATCH, depth - known)
            read([rng.randrange(300, vocab - 1) for _ in range(count)])
            known += count
        times = []
        for _ in range(new_tokens):
            began = time.perf_counter()
            read([rng.randrange(300, vocab - 1)])
            times.append(time.perf_counter() - began)
        known += new_tokens
        rates.append(round(1 / statistics.median(times), 2))
    return rates


def ours(options: argparse.Namespace, depths: Sequence[int]) -> list[float]:
    from core.events import LoadOptions
    from core.runtime.loaded_model import LoadedModel
    from core.runtime.loader import load_model
    from core.startup.environment import prepare_environment

    prepare_environment()
    wishes = LoadOptions(format=options.format, threads=options.threads, context=depths[-1] + options.new_tokens + ROOM)
    steps = load_model(f"shape:{options.shape}", wishes)
    loaded = next(step for step in steps if isinstance(step, LoadedModel))
    loaded.model.forward([1] * 16, loaded.cache)
    loaded.model.forward([1], loaded.cache)
    loaded.cache.reset()
    rates = at_depths(
        depths, options.new_tokens, lambda ids: loaded.model.forward(ids, loaded.cache), loaded.spec.vocab
    )
    loaded.close()
    return rates


def theirs(options: argparse.Namespace, depths: Sequence[int]) -> list[float]:
    from llama_cpp import Llama

    context = depths[-1] + options.new_tokens + ROOM
    model = Llama(
        options.gguf, n_ctx=context, n_threads=options.threads, n_threads_batch=options.threads, n_batch=BATCH,
        verbose=False,
    )  # fmt: skip
    model.eval([300] * 16)
    model.reset()
    return at_depths(depths, options.new_tokens, model.eval, model.n_vocab())


def in_a_process(python: str, who: str) -> list[float]:
    command = [python, "-m", "tests.bench.context_depth", *sys.argv[1:], "--only", who]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")
    rates: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{who:7}", *rates, flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--format", default="int8")
    parser.add_argument("--depths", default="256,4096")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", choices=("ours", "theirs"))
    options = parser.parse_args()
    depths = [int(depth) for depth in options.depths.split(",")]
    if options.only:
        print(json.dumps(ours(options, depths) if options.only == "ours" else theirs(options, depths)))
        return
    runs: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for _ in range(options.rounds):
        runs["ours"].append(in_a_process(sys.executable, "ours"))
        runs["theirs"].append(in_a_process(options.peer_python, "theirs"))
    result = {}
    for who, rows in runs.items():
        rates = [statistics.median(column) for column in zip(*rows, strict=True)]
        result[who] = {"tok_s": dict(zip(depths, rates, strict=True)), "left": round(rates[-1] / rates[0], 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
