"""Measures the cost of an 8-bit KV cache: attention time relative to bf16, and agreement of tokens.

    python -m tests.bench.kv_format time [--depths 4096,16384] [--heads 32] [--kv-heads 8] [--dim 64] [--rounds 5]
    python -m tests.bench.kv_format decode MODEL [--format int4] [--depths 256,4000] [--rounds 5]
    python -m tests.bench.kv_format agree FOLDER TEXTFILE [--positions 4000] [--window 1024]

`time`: one query over one layer's keys, both formats alternately, medians, with more layers than fit in the caches.
`decode`: one token at each depth of context, alternately with a KV cache of each format; MODEL is a folder or
`shape:NAME`.

`agree`: compares the most likely token at every position of the text, and of the model's greedy answers, with the same
model with the KV cache rounded to bf16 (`int8_as_bf16`) and unrounded. The 8-bit cache is read `--step` tokens at a
time, as a pass sees its own tokens unquantised. Use an fp32 model: otherwise its own rounding is measured. Also prints
how well the two others agree, and two passes over the text in different chunks. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.events import NO_DRAFT, LoadOptions
from core.kernels.packed_states import pack
from core.kernels.packed_width import PACKED, packed_width
from core.layers.attention import attend
from core.layers.kv_cache import KVCache
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.spec import KvFormat
from core.startup.environment import prepare_environment

ENOUGH_BYTES = 512 << 20
BEGINNING, ANSWER = 48, 112
CHUNK, TOKENS = 512, 32


def seconds(query: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of one layer's attention."""
    began = time.perf_counter()
    for key, value in layers:
        attend(nn.Module(), query, key, value, None)
    return (time.perf_counter() - began) / len(layers)


def packed(states: Tensor, *, mixed: bool) -> Tensor:
    made = torch.empty((*states.shape[:3], packed_width(states.shape[3])), dtype=PACKED)
    pack(states, made, mixed=mixed)
    return made


def time_attention(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for depth in map(int, options.depths.split(",")):
        query = torch.randn(1, options.heads, 1, options.dim).bfloat16()
        shape = (1, options.kv_heads, depth, options.dim)
        count = max(2, ENOUGH_BYTES // (4 * options.kv_heads * depth * options.dim))
        floats = [(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()) for _ in range(count)]
        bytes = [(packed(key, mixed=True), packed(value, mixed=False)) for key, value in floats]
        times = [(seconds(query, floats), seconds(query, bytes)) for _ in range(options.rounds)]
        bf16, int8 = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        found[str(depth)] = {"bf16_us": round(bf16, 1), "int8_us": round(int8, 1), "ratio": round(int8 / bf16, 3)}
        print(depth, found[str(depth)], flush=True)
    return found


def decode_seconds(loaded: LoadedModel, cache: KVCache, rounds: int) -> float:
    """Return the median of `rounds` passes over one token."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        loaded.model.forward([7], cache)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def time_decoding(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    prepare_environment()
    depths = [int(depth) for depth in options.depths.split(",")]
    wishes = LoadOptions(format=options.format, context=depths[-1] + 512, draft=NO_DRAFT)
    loaded = next(step for step in load_model(options.model, wishes) if isinstance(step, LoadedModel))
    config, found = loaded.model.module.config, {}
    kinds = [KVCache(config, depths[-1] + 512, format=kind) for kind in ("bf16", "int8")]
    for depth in depths:
        for cache in kinds:
            while len(cache.tokens) < depth:
                loaded.model.forward([5] * min(CHUNK, depth - len(cache.tokens)), cache)
        times = [[decode_seconds(loaded, cache, TOKENS) for cache in kinds] for _ in range(options.rounds)]
        bf16, int8 = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        ratio = statistics.median(int8 / bf16 for bf16, int8 in times)
        found[str(depth)] = {"bf16_ms": round(bf16, 3), "int8_ms": round(int8, 3), "ratio": round(ratio, 3)}
        print(depth, found[str(depth)], flush=True)
        for cache in kinds:
            cache.rewind(depth)
    loaded.close()
    return found


def load(folder: Path, kv: KvFormat, context: int) -> LoadedModel:
    options = LoadOptions(format="bf16", context=context, draft=NO_DRAFT, kv=kv)
    return next(step for step in load_model(folder, options) if isinstance(step, LoadedModel))


def likeliest(loaded: LoadedModel, texts: Sequence[Sequence[int]], chunk: int) -> Tensor:
    """Return the most likely token after every position of every text."""
    found = []
    for ids in texts:
        loaded.cache.reset()
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            found.append(loaded.model.forward(part, loaded.cache, keep=len(part)).argmax(-1))
    return torch.cat(found)


def same(left: Tensor, right: Tensor) -> float:
    """Return the share of equal tokens."""
    return round(float((left == right).float().mean()), 4)


def answered(loaded: LoadedModel, beginning: Sequence[int]) -> list[int]:
    """Return the beginning and ANSWER greedy tokens after it."""
    loaded.cache.reset()
    ids = list(beginning)
    token = int(loaded.model.forward(ids, loaded.cache)[-1].argmax())
    for _ in range(ANSWER):
        ids.append(token)
        token = int(loaded.model.forward([token], loaded.cache)[-1].argmax())
    return ids


class RoundedCache(KVCache):
    """A KV cache that rounds keys and values to bf16, whatever the model's data type."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        key, value = (states.bfloat16().to(states.dtype) for states in (key_states, value_states))
        return super().update(key, value, *args, **kwargs)


def agree(options: argparse.Namespace) -> dict[str, float]:
    prepare_environment()
    exact = load(options.folder, "bf16", options.window + 64)
    assert exact.tokenizer is not None
    ids = exact.tokenizer.encode(options.text.read_text(encoding="utf-8"))
    text = [ids[at : at + options.window] for at in range(0, options.positions, options.window)]
    count = options.positions // (BEGINNING + ANSWER)
    step = len(ids) // count
    own = [answered(exact, ids[at * step : at * step + BEGINNING]) for at in range(count)]
    wanted = [likeliest(exact, texts, options.window) for texts in (text, own)]
    others = [likeliest(exact, texts, 96) for texts in (text, own)]
    exact.cache = RoundedCache(exact.model.module.config, options.window + 64)
    rounded = [likeliest(exact, texts, options.window) for texts in (text, own)]
    exact.close()
    other = load(options.folder, "int8", options.window + 64)
    found = [likeliest(other, texts, options.step) for texts in (text, own)]
    other.close()
    result: dict[str, float] = {}
    for name, right, bf16, chunked, told in zip(("text", "own"), wanted, rounded, others, found, strict=True):
        result[f"{name}_positions"] = len(right)
        result[f"{name}_int8_as_bf16"] = same(told, bf16)
        result[f"{name}_int8"] = same(told, right)
        result[f"{name}_bf16"] = same(bf16, right)
        result[f"{name}_other_chunks"] = same(chunked, right)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(dest="which", required=True)
    timed = which.add_parser("time")
    timed.add_argument("--depths", default="4096,16384")
    for name, value in (("heads", 32), ("kv-heads", 8), ("dim", 64), ("rounds", 5)):
        timed.add_argument(f"--{name}", type=int, default=value)
    decoded = which.add_parser("decode")
    decoded.add_argument("model")
    decoded.add_argument("--format", default="int4")
    decoded.add_argument("--depths", default="256,4000")
    decoded.add_argument("--rounds", type=int, default=5)
    agreed = which.add_parser("agree")
    agreed.add_argument("folder", type=Path)
    agreed.add_argument("text", type=Path)
    agreed.add_argument("--positions", type=int, default=4000)
    agreed.add_argument("--window", type=int, default=1000)
    agreed.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    measures: Mapping[str, Callable[[argparse.Namespace], Mapping[str, object]]] = {
        "time": time_attention, "decode": time_decoding, "agree": agree,
    }  # fmt: skip
    print(json.dumps(measures[options.which](options)))


if __name__ == "__main__":
    main()
