"""`bench`: measures a model's actual speed with a given strategy, and its distance from the hardware's limits."""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import psutil

from core.commands.arguments import add_json, add_machine_options, add_model, load_options, model_name
from core.commands.plan import as_json as plan_json
from core.errors import BadRequest
from core.sentence import sentence
from core.spec import Hardware, Plan

STRATEGIES = ("hetegen", "stream", "cpu", "serial")
SEED = 0


@dataclass(frozen=True)
class Run:
    """Measured times in seconds: loading, the prompt, and each new token."""

    load_s: float
    prefill_s: float
    steps_s: tuple[float, ...]
    tokens: tuple[int, ...]


def add(subparsers: Any) -> None:
    """Add the command `bench` and its options."""
    parser = subparsers.add_parser("bench", help="measure prompt and reply speed")
    add_model(parser)
    parser.add_argument("--prompt-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--strategy", choices=STRATEGIES, default="hetegen")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the model, print the main figures and return all of them. Raises HeteGenError."""
    from core.startup.environment import importing, prepare_environment

    for count in (args.prompt_tokens, args.new_tokens):
        if count < 1:
            raise BadRequest(sentence("{} tokens cannot be measured.", count), "", "Choose 1 or more.")
    prepare_environment()
    with importing():
        from core.runtime.loaded_model import LoadedModel
        from core.runtime.loader import load_model

    began = time.perf_counter()
    for step in load_model(model_name(args), load_options(args), args.strategy):
        if isinstance(step, LoadedModel):
            loaded = step
    load_s = time.perf_counter() - began
    try:
        _check_room(loaded.plan, args.prompt_tokens + args.new_tokens)
        measured = _measure(loaded, args.prompt_tokens, args.new_tokens, load_s)
        result = _result(loaded, measured) | {"drafting": _drafting(loaded, args.prompt_tokens, args.new_tokens)}
    finally:
        loaded.close()
    for name in ("format", "ttft_s", "prefill_tok_s", "decode_tok_s", "predicted_decode_tok_s", "efficiency"):
        print(f"{name:24} {result[name]}")
    for name, value in (result["drafting"] or {}).items():
        print(f"{name:24} {value}")
    return result


def _check_room(plan: Plan, tokens: int) -> None:
    """Raise BadRequest if prompt and reply are longer than the context."""
    if tokens > plan.context:
        raise BadRequest(
            sentence("{} tokens do not fit into a context of {}.", f"{tokens:,}", f"{plan.context:,}"),
            "", "Choose fewer tokens, or a longer context.",
        )  # fmt: skip


def _prompt(loaded: Any, tokens: int) -> list[int]:
    rng = random.Random(SEED)
    return [rng.randrange(loaded.spec.vocab) for _ in range(tokens)]


def _measure(loaded: Any, prompt_tokens: int, new_tokens: int, load_s: float) -> Run:
    prompt = _prompt(loaded, prompt_tokens)
    loaded.model.forward(prompt[:16], loaded.cache)  # warm up: the first call of every kernel is slower
    loaded.model.forward(prompt[:1], loaded.cache)
    loaded.cache.reset()
    loaded.model.frequencies.use(prompt_tokens + new_tokens)
    for accelerator in loaded.machine.accelerators.values():
        accelerator.reset_peak()
    began = time.perf_counter()
    chunk = loaded.plan.prefill_chunk
    for start in range(0, prompt_tokens, chunk):
        logits = loaded.model.forward(prompt[start : start + chunk], loaded.cache)
    prefill_s = time.perf_counter() - began
    tokens, steps = [], []
    for _ in range(new_tokens):
        tokens.append(int(logits[-1].argmax()))
        began = time.perf_counter()
        logits = loaded.model.forward(tokens[-1:], loaded.cache)
        steps.append(time.perf_counter() - began)
    return Run(load_s, prefill_s, tuple(steps), tuple(tokens))


def _drafting(loaded: Any, prompt_tokens: int, new_tokens: int) -> dict[str, Any] | None:
    """Measure the same reply with the draft model of `--draft`; None if there is none."""
    from core.events import Sampling, never
    from core.generation.generate import DrawnToken, generate
    from core.generation.sampler import TokenSampler, resolve

    if loaded.draft is None:
        return None
    loaded.cache.reset()
    prompt = _prompt(loaded, prompt_tokens)
    ahead, sample = loaded.speculation(prompt), TokenSampler(resolve(Sampling(temperature=0.0), Sampling()))
    chunk, moments = loaded.plan.prefill_chunk, list[float]()
    for step in generate(loaded.model, loaded.cache, prompt, sample, never, chunk, ahead):
        if isinstance(step, DrawnToken):
            moments.append(time.perf_counter())
        if len(moments) > new_tokens:
            break
    return {
        "drafted_tok_s": round(new_tokens / (moments[-1] - moments[0]), 3),
        "drafter": ahead.drafter,
        "tokens_per_pass": ahead.tokens_per_pass,
        "acceptance": ahead.acceptance,
        "expected_gain": round(loaded.draft.gain, 3),
    }


def _result(loaded: Any, run: Run) -> dict[str, Any]:
    """Return the command's JSON object."""
    plan, prompt_tokens = loaded.plan, len(loaded.cache.tokens) - len(run.steps_s)
    p50 = statistics.median(run.steps_s)
    peaks = [accelerator.memory().peak for accelerator in loaded.machine.accelerators.values()]
    return {
        "format": plan.format,
        "kv": plan.kv,
        "strategy": plan.strategy,
        "threads": plan.threads,
        "plan": plan_json(plan, loaded.spec),
        "load_s": round(run.load_s, 3),
        "ttft_s": round(run.prefill_s, 4),
        "prefill_tok_s": round(prompt_tokens / run.prefill_s, 2),
        "decode_tok_s": round(1 / p50, 3),
        "decode_ms_p50": round(p50 * 1e3, 3),
        "decode_ms_p95": round(sorted(run.steps_s)[int(0.95 * (len(run.steps_s) - 1))] * 1e3, 3),
        "bytes_per_token": {
            "cpu": plan.bytes_per_token.cpu,
            "link": plan.bytes_per_token.link,
            "gpu": plan.bytes_per_token.gpu,
        },
        "ceilings_gb_s": _ceilings(plan, loaded.machine.now()),
        "ideal_ms": round(plan.ideal_ms, 3),
        "efficiency": round(plan.ideal_ms / (p50 * 1e3), 3),
        "predicted_decode_tok_s": round(plan.decode.likely, 3),
        "experts": _experts(loaded),
        "graphs": _graphs(loaded),
        "peak_rss_bytes": peak_rss(),
        "peak_vram_bytes": max(peaks, default=0),
        "output_sha256": hashlib.sha256(repr(run.tokens).encode()).hexdigest(),
    }


def _experts(loaded: Any) -> dict[str, float] | None:
    """Return the usage of the chosen experts if the GPU holds some of them whole."""
    use = getattr(loaded.model.placement, "expert_use", None)
    if use is None:
        return None
    return {
        "held": use.held,
        "hit_rate": round(use.hits / max(1, use.hits + use.copied + use.computed), 4),
        "hits": use.hits,
        "copied": use.copied,
        "computed": use.computed,
        "replaced": use.replaced,
    }


def _graphs(loaded: Any) -> dict[str, Any] | None:
    """Return what the GPU replays, and the memory of that, if the plan allows it."""
    captures = loaded.model.placement.captures
    if captures is None or captures.graphs is None:
        return None
    plan, use = loaded.plan, captures.graphs
    return {
        "layers": len(plan.captured), "gaps": len(plan.gaps), "bytes": use.taken, "reserved": use.reserved,
        "full": use.full,
    }  # fmt: skip


def _ceilings(plan: Plan, hardware: Hardware) -> dict[str, float]:
    gpu = next((gpu for gpu in hardware.gpus if gpu.index == plan.gpu), None)
    return {
        "cpu": round(hardware.cpu.read_bytes_s / 1e9, 2),
        "link": round(gpu.link.h2d_pinned / 1e9, 2) if gpu else 0.0,
        "gpu": round(gpu.bytes_s / 1e9, 2) if gpu else 0.0,
    }


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
