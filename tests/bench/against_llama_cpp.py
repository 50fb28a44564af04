"""Compares decode and prefill speed with llama.cpp on the same shape, in alternating runs; medians and ratios.

    python -m tests.bench.against_llama_cpp --peer PEER_PYTHON PEER_SCRIPT [--pairs int8:Q8_0,int4:Q4_0,bf16:BF16]
        [--shape llama-3.2-1b] [--rounds 3] [--threads 2] [--prompt-tokens 256] [--new-tokens 64]

PEER_SCRIPT takes `--shape --quant --threads --prompt-tokens --new-tokens`; its last line is a JSON object with
`decode_tok_s` and `prefill_tok_s`. Every run is a process of its own. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

Runs = list[dict[str, Any]]


def last_json(command: list[str]) -> dict[str, Any]:
    """Run a command and parse the JSON object on its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(options: argparse.Namespace, ours: str, theirs: str) -> dict[str, Any]:
    """Run both engines alternately, `rounds` times."""
    sizes = [
        "--shape", options.shape, "--threads", str(options.threads),
        "--prompt-tokens", str(options.prompt_tokens), "--new-tokens", str(options.new_tokens),
    ]  # fmt: skip
    mine: Runs = []
    peers: Runs = []
    for _ in range(options.rounds):
        mine.append(last_json([sys.executable, "-m", "core", "bench", "--format", ours, "--json", *sizes]))
        peers.append(last_json([*options.peer, "--quant", theirs, *sizes]))
    return {
        "pair": f"{ours} against {theirs}",
        "decode": compare(mine, peers, "decode_tok_s"),
        "prefill": compare(mine, peers, "prefill_tok_s"),
        "decode_ms_p50": statistics.median(run["decode_ms_p50"] for run in mine),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in mine),
    }


def compare(mine: Runs, peers: Runs, figure: str) -> dict[str, float]:
    """Return both medians, and the median of the ratios within each round."""
    ratios = [one[figure] / other[figure] for one, other in zip(mine, peers, strict=True)]
    return {
        "ours": round(statistics.median(run[figure] for run in mine), 2),
        "theirs": round(statistics.median(run[figure] for run in peers), 2),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs=2, required=True, metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--pairs", default="int8:Q8_0,int4:Q4_0,bf16:BF16")
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    results = []
    for pair in options.pairs.split(","):
        results.append(measure(options, *pair.split(":")))
        for phase in ("decode", "prefill"):
            row = results[-1][phase]
            print(f"{results[-1]['pair']:24} {phase:8} {row['ours']:9} {row['theirs']:9} {row['ratio']:7}x", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
