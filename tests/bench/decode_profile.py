"""Profiles the time of one decoded token: matmuls, attention, norms, and the rest in Python.

    python -m tests.bench.decode_profile [--shape llama-3.2-1b] [--format int4] [--prompt-tokens 256] [--new-tokens 48]

Passes run twice: plain, and with a timer around each part (which adds the timer's own time). Also prints which share of
the memory's read rate a token's weights reach. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

from core.events import LoadOptions
from core.layers.norms import NativeRMSNorm
from core.offload.hetero_linear import HostLinear
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.startup.environment import prepare_environment

KERNELS = {
    "_layers": "layers that follow each other",
    "_layer_begin": "layers, up to attention",
    "_layer_end": "layers, from attention on",
    "_block": "layers with a recurrence",
    "_recurrent_layer": "recurrences",
    "_matmul": "matmuls",
    "_prepare": "quantising inputs",
    "_attention": "attention",
}
"""Native calls that are timed separately, with their names."""


class Clock:
    """Accumulates seconds and calls per part; time of nested parts is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def around(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.seconds[part] += took - self._inner.pop()
                self.calls[part] += 1
                self._inner[-1] += took

        return timed


def load(shape: str, format: Any, threads: int | None = None) -> LoadedModel:
    """Load a model of this shape with random weights."""
    prepare_environment()
    steps = load_model(f"shape:{shape}", LoadOptions(format=format, threads=threads))
    return next(step for step in steps if isinstance(step, LoadedModel))


def decode(loaded: LoadedModel, count: int) -> list[float]:
    """Return the seconds of each of `count` passes over one token."""
    times = []
    for number in range(count):
        began = time.perf_counter()
        loaded.model.forward([1000 + number], loaded.cache)
        times.append(time.perf_counter() - began)
    return times


def read_prompt(loaded: LoadedModel, tokens: int) -> None:
    """Fill the cache with random ids."""
    loaded.cache.reset()
    rng = random.Random(0)
    chunk = loaded.plan.prefill_chunk
    for start in range(0, tokens, chunk):
        ids = [rng.randrange(loaded.spec.vocab) for _ in range(min(chunk, tokens - start))]
        loaded.model.forward(ids, loaded.cache)


def watch(loaded: LoadedModel, clock: Clock) -> None:
    """Wrap the native calls, every norm and every leaf module in a timer."""
    from core.kernels.native_abi import instruction_sets
    from core.kernels.native_library import open_library

    for name in instruction_sets():
        library = open_library(name)
        for attribute, part in KERNELS.items():
            setattr(library, attribute, clock.around(part, getattr(library, attribute)))
    for layer in (one for one in loaded.cache.layers if hasattr(one, "update")):
        layer.update = clock.around("KV cache", layer.update)
    for module in loaded.source.module.modules():
        if isinstance(module, NativeRMSNorm) or not any(True for _ in module.children()):
            part = "around matmuls" if isinstance(module, HostLinear) else type(module).__name__
            own: nn.Module = module
            own.forward = clock.around(part, own.forward)
        elif any(isinstance(child, nn.Conv1d) for child in module.children()):
            module.forward = clock.around("linear attention", module.forward)


def main() -> None:
    # torch's threads read their spin time when torch is imported, which is before any line here.
    if "GOMP_SPINCOUNT" not in os.environ:
        prepare_environment()
        os.execv(sys.executable, [sys.executable, "-m", "tests.bench.decode_profile", *sys.argv[1:]])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--format", choices=("bf16", "int8", "int4"), default="int4")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=48)
    options = parser.parse_args()
    loaded = load(options.shape, options.format)
    read_prompt(loaded, options.prompt_tokens)
    decode(loaded, 4)
    plain = statistics.median(decode(loaded, options.new_tokens))
    clock = Clock()
    watch(loaded, clock)
    forward = clock.around("Python and loose operations", loaded.model.forward)
    loaded.model.forward = forward  # type: ignore[method-assign]
    decode(loaded, options.new_tokens)
    rows = sorted(clock.seconds.items(), key=lambda row: -row[1])
    for part, seconds in rows:
        calls = clock.calls[part] / options.new_tokens
        print(f"{part:32} {1e3 * seconds / options.new_tokens:7.3f} ms {calls:5.0f} calls")
    rate = loaded.plan.bytes_per_token.cpu / plain
    ceiling = loaded.machine.now().cpu.read_bytes_s
    print(f"{'a token, unwatched':32} {1e3 * plain:7.3f} ms; memory {rate / 1e9:.1f} of {ceiling / 1e9:.1f} GB/s")
    print(json.dumps({
        "format": options.format, "token_ms": round(1e3 * plain, 3), "bandwidth_share": round(rate / ceiling, 3),
        "parts_ms": {part: round(1e3 * seconds / options.new_tokens, 3) for part, seconds in rows},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
