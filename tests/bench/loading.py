"""Measures loading a checkpoint from disk, the first time and later, and the peak memory of a chat.

    python -m tests.bench.loading [--shape llama-3.2-1b] [--format int8] [--context 4096] [--folder DIR]

Random weights are written to DIR once (2.5 GB for the default shape). Every load is a process of its own with the same
HETEGEN_HOME. Seconds are given with and without imports. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
GUIDE = Path(__file__).parents[2] / "assets/builtin-model"
PROMPT, REPLY = 600, 100


def write_checkpoint(shape_name: str, folder: Path) -> None:
    """Write a model folder as on the Hub, with the built-in guide's tokenizer."""
    from safetensors.torch import save_file

    from core.model.model_source import open_source
    from core.weights.known_shapes import shape

    source = open_source(f"shape:{shape_name}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: source.weights[name] for name in source.weights}, folder / "part", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape(shape_name)), encoding="utf-8")
    for file in GUIDE.glob("tokenizer*.json"):
        shutil.copy2(file, folder)
    (folder / "part").replace(folder / "model.safetensors")


def load_once(options: argparse.Namespace) -> dict[str, Any]:
    """Load, then read a prompt and generate a reply."""
    began = time.perf_counter()
    from core.startup.environment import importing, prepare_environment

    prepare_environment()
    from core.commands.bench import peak_rss
    from core.events import LoadOptions, never
    from core.paths import cache_folder
    from core.startup.transformers_index import keep_model_index

    keep_model_index(cache_folder())  # as the window and the command line do
    with importing():
        from core.generation.generate import DrawnToken, generate
        from core.runtime.loaded_model import LoadedModel
        from core.runtime.loader import load_model

    imported = time.perf_counter()
    loading = load_model(options.folder, LoadOptions(format=options.format, context=options.context))
    loaded = next(step for step in loading if isinstance(step, LoadedModel))
    ready = time.perf_counter()
    rng = random.Random(0)
    ids = [rng.randrange(loaded.spec.vocab) for _ in range(PROMPT)]
    steps = generate(
        loaded.model, loaded.cache, ids, lambda row, _: int(row.argmax()), never, loaded.plan.prefill_chunk
    )
    tokens = (step for step in steps if isinstance(step, DrawnToken))
    for _ in range(REPLY):
        next(tokens)
    memory = loaded.plan.memory[0]
    return {
        "load_s": round(ready - imported, 3), "with_imports_s": round(ready - began, 3),
        "peak_rss_mib": peak_rss() // MIB, "weights_and_kv_mib": (memory.weights + memory.kv_cache) // MIB,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--format", choices=("bf16", "int8", "int4"), default="int8")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--folder", default="")
    parser.add_argument("--once", action="store_true", help="load the folder in this process")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(load_once(options)))
        return
    folder = options.folder or str(Path(tempfile.gettempdir()) / "hetegen-bench" / options.shape)
    if not (Path(folder) / "model.safetensors").exists():
        write_checkpoint(options.shape, Path(folder))
    results = []
    with tempfile.TemporaryDirectory() as home:
        for name in ("measuring and converting", "second", "third"):
            command = [sys.executable, "-m", "tests.bench.loading", *sys.argv[1:], "--once", "--folder", folder]
            environment = {**os.environ, "HETEGEN_HOME": home}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(done.stderr.strip())
            results.append({"load": name, **json.loads(done.stdout.strip().splitlines()[-1])})
            print(*results[-1].values(), flush=True)
    print(json.dumps({"format": options.format, "loads": results}))


if __name__ == "__main__":
    main()
