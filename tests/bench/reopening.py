"""Measures how soon a long conversation goes on after a restart: from the KV cache on disk, or by reading again.

`python -m tests.bench.reopening [--shape llama-3.2-1b] [--tokens 6000] [--format int8] [--kv int8]` prints one JSON
line. The file is read twice, first after the system dropped its cached pages (`cold`: whether that is supported).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.events import LoadOptions, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.paths import kept_reading
from core.runtime.kept_readings import KeptReadings
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0, seed=0)
QUESTION = [11, 12, 13, 14, 15, 16, 17, 18]


def go_on(loaded: LoadedModel, ids: list[int], count: int) -> tuple[float, list[int]]:
    """Return the seconds to the first token after `ids`, and the first `count` tokens."""
    began, first, drawn = time.perf_counter(), 0.0, []
    for step in generate(loaded.model, loaded.cache, ids, TokenSampler(resolve(GREEDY, Sampling())), never):
        if isinstance(step, DrawnToken):
            first = first or time.perf_counter() - began
            drawn.append(step.id)
        if len(drawn) == count:
            break
    return first, drawn


def measure(shape: str, tokens: int, options: LoadOptions) -> dict[str, Any]:
    """Read a prompt and go on, save its KV cache, and go on again from the file."""
    *_, loaded = load_model(f"shape:{shape}", options)
    assert isinstance(loaded, LoadedModel)
    source = random.Random(0)
    prompt = [source.randrange(100, 30_000) for _ in range(tokens)]
    again_s, _ = go_on(loaded, [*prompt, *QUESTION], 32)
    # Reading the prompt alone rounds differently from one pass that includes its end: do the same here.
    loaded.cache.rewind(tokens)
    _, expected = go_on(loaded, [*prompt, *QUESTION], 32)
    loaded.cache.rewind(tokens)
    kept = KeptReadings("bench")
    began = time.perf_counter()
    kept.keep("bench", loaded.cache, tokens)
    begun_s = time.perf_counter() - began
    kept.settle(finish=True)
    written_s = time.perf_counter() - began
    held = loaded.spec.with_kv(loaded.plan.kv).kv_bytes(len(loaded.cache.tokens))
    size = kept_reading("bench").stat().st_size
    cold = drop_pages(kept_reading("bench"))
    cold_s, cold_first_s, cold_told = reopened(kept, loaded, prompt)
    recalled_s, first_s, told = reopened(kept, loaded, prompt)
    loaded.close()
    return {
        "shape": shape, "format": loaded.plan.format, "tokens": tokens,
        "begin_to_write_ms": round(begun_s * 1e3, 1), "written_s": round(written_s, 2), "file_bytes": size,
        "kv_bytes": held, "file_over_kv": round(size / held, 4), "reading_again_s": round(again_s, 2),
        "cold": cold, "cold_recalled_s": round(cold_s, 3), "cold_first_token_s": round(cold_s + cold_first_s, 3),
        "cold_ratio": round((cold_s + cold_first_s) / again_s, 4),
        "recalled_s": round(recalled_s, 3), "first_token_s": round(recalled_s + first_s, 3),
        "ratio": round((recalled_s + first_s) / again_s, 4), "same_tokens": told == cold_told == expected,
    }  # fmt: skip


def drop_pages(path: Path) -> bool:
    """Make the system drop a file's cached pages; return whether it supports that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def reopened(kept: KeptReadings, loaded: LoadedModel, prompt: list[int]) -> tuple[float, float, list[int]]:
    """Return the seconds to load the prompt from its file, then to the first token, and what follows."""
    loaded.cache.reset()
    began = time.perf_counter()
    kept.recall("bench", loaded.cache, [*prompt, *QUESTION], 0, torch.device("cpu"))
    recalled_s = time.perf_counter() - began
    return recalled_s, *go_on(loaded, [*prompt, *QUESTION], 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--format", default="int8")
    parser.add_argument("--kv", choices=["bf16", "int8"], default="bf16")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = str(Path(home))
        options = replace(LoadOptions(), context=asked.tokens + 256, format=asked.format, kv=asked.kv)
        print(json.dumps(measure(asked.shape, asked.tokens, options)))


if __name__ == "__main__":
    main()
