"""Measures the heterogeneous core on the simulated card, which computes on the CPU's own cores.

    python -m tests.bench.heterogeneous strategies|rings|predictions|phases|pairs|live|memory [--shape NAME] [--json]
        [--cores 0] [--prompt-tokens 512] [--new-tokens 24] [--format F]

`strategies`: each way to use the card, with the link at a quarter of the CPU's measured rate. `rings`: streaming
through other numbers and sizes of buffers. `predictions`: predicted against measured decoding, over formats, links and
VRAM. `phases`: the shares of decoding and of prefill, each in both phases; `--cores 1` gives the card a core of its
own, as otherwise it shares the CPU's cores and only decoding is conclusive. `pairs`: layers whose linears are exchanged
one by one, by input, and with down split by the columns that gate and up are split by rows. `live`: VRAM reduced in
mid-reply and restored. `memory`: peak RAM, without the program and the simulated card's memory, against the plan's
figure.

Keep the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from core.accelerators.simulated import SimulatedAccelerator
from core.commands.bench import peak_rss
from core.events import LoadOptions, never
from core.generation.generate import DrawnToken, generate
from core.hardware.benchmark import present_paces
from core.hardware.machine import Machine, open_machine
from core.model.language_model import LanguageModel
from core.model.placement import DevicePlacement, HostPlacement
from core.paths import cache_folder
from core.planning.planner import place
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.runtime.replanner import Replanner
from core.spec import BUCKET_TOKENS, DECODE, PREFILL, Budget, Format, LinearPlan, Plan, Ring, Rows, Strategy, kin
from core.startup.environment import prepare_environment
from core.units import GIB, KIB, MIB
from tests.core.offload.test_hetero_linear import by_heads

STRATEGIES: tuple[Strategy, ...] = ("hetegen", "cpu", "stream", "serial")
CONTEXT = 1024
RINGS = tuple(
    Ring(buffers, size) for buffers, size in ((4, 16 * MIB), (4, 8 * MIB), (8, 4 * MIB), (8, 2 * MIB), (8, MIB))
)
SETTINGS: dict[Format, tuple[tuple[float, float, Strategy], ...]] = {
    "bf16": ((1, 4, "hetegen"), (2, 8, "hetegen"), (1, 4, "stream")),
    "int8": ((0.5, 4, "hetegen"), (1, 12, "hetegen"), (0.5, 2, "serial")),
    "int4": ((0.375, 4, "hetegen"), (0.75, 8, "hetegen")),
}
"""VRAM in GiB, link in GB/s, and strategy of each prediction."""
IN_TURN = 3
AT_PACE, MOST_TRIES = 0.12, 5
"""Plan and run again if the machine's speed changed between planning and the end of the run."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Seconds of the prompt and of each new token, the ids, and the busy shares of the link and the CPU's cores."""

    prefill_s: float
    steps_s: tuple[float, ...]
    tokens: tuple[int, ...]
    link_busy: float
    cores_busy: float
    peak: int

    @property
    def decode_s(self) -> float:
        return statistics.median(self.steps_s)


class Model:
    """A shape in one format, to be placed in many ways."""

    def __init__(self, shape: str, format: Format) -> None:
        options = LoadOptions(format=format, context=CONTEXT)
        steps = load_model(f"shape:{shape}", options)
        self._loaded = next(step for step in steps if isinstance(step, LoadedModel))
        self.spec, self.format = self._loaded.spec, format

    def plan(self, machine: Machine, strategy: Strategy = "hetegen") -> Plan:
        machine.keep_pace()
        return place(self.spec, machine.now(), Budget(context=CONTEXT, format=self.format), strategy)

    def run(self, machine: Machine, plan: Plan, new_tokens: int, prompt_tokens: int) -> Run:
        """Carry out a plan on a fresh simulated card."""
        machine.close()
        torch.set_num_threads(plan.threads)
        device = machine.accelerator(0)
        assert isinstance(device, SimulatedAccelerator)
        module = self._loaded.source.module
        HostPlacement(module, self._loaded.weights)
        placement = DevicePlacement(module, self._loaded.weights, plan, device, self.spec.kv_layers)
        for _ in placement.apply(plan):
            pass
        model, cache = LanguageModel(module, placement), placement.make_cache(module.config, plan)
        rng = random.Random(0)
        prompt = [rng.randrange(self.spec.vocab) for _ in range(prompt_tokens)]
        model.forward(prompt[:1], cache)  # warm up every kernel
        cache.reset()
        began = time.perf_counter()
        for start in range(0, len(prompt), plan.prefill_chunk):
            logits = model.forward(prompt[start : start + plan.prefill_chunk], cache)
        prefill_s = time.perf_counter() - began
        tokens, steps, busy = [], [], device.link_busy_s
        began, computed = time.perf_counter(), time.process_time()
        for _ in range(new_tokens):
            tokens.append(int(logits[-1].argmax()))
            start_s = time.perf_counter()
            logits = model.forward(tokens[-1:], cache)
            steps.append(time.perf_counter() - start_s)
        elapsed = time.perf_counter() - began
        link_busy = (device.link_busy_s - busy) / elapsed
        cores_busy = (time.process_time() - computed) / elapsed / (psutil.cpu_count() or 1)
        peak = device.memory().peak
        placement.close()
        machine.close()
        return Run(prefill_s, tuple(steps), tuple(tokens), link_busy, cores_busy, peak)

    def rate(self, machine: Machine) -> float:
        """Return the measured bytes per second of the CPU's kernel for this format."""
        rates = {rate.storage: rate.bytes_s for rate in machine.hardware.cpu.rates}
        return rates[kin(self.spec.storage(self.spec.linears[0], self.format))]


def machine_with(vram_gib: float, link: float, cores: int = 0) -> Machine:
    return open_machine(cache_folder(), f"vram={int(vram_gib * 1024)}MiB,link={link / 1e9:.2f}GB/s,cores={cores}")


def quarter_machine(model: Model, cores: int) -> Machine:
    """Open a machine with 1 GiB of VRAM and a link at a quarter of the CPU kernel's rate on its remaining cores."""
    return machine_with(1, model.rate(machine_with(1, 8e9, cores)) / 4, cores)


def strategies(options: argparse.Namespace) -> Iterator[Row]:
    """Run all strategies alternately several times and yield medians."""
    model = Model(options.shape, "bf16")
    machine = quarter_machine(model, options.cores)
    plans = {strategy: model.plan(machine, strategy) for strategy in STRATEGIES}
    runs: dict[Strategy, list[Run]] = {strategy: [] for strategy in STRATEGIES}
    for _ in range(IN_TURN):
        for strategy, plan in plans.items():
            runs[strategy].append(model.run(machine, plan, options.new_tokens, options.prompt_tokens))
    for strategy, plan in plans.items():
        run = sorted(runs[strategy], key=lambda one: one.decode_s)[IN_TURN // 2]
        prefill_s = statistics.median(one.prefill_s for one in runs[strategy])
        yield {
            "strategy": strategy,
            "link_gb_s": round(machine.hardware.gpus[0].link.h2d_pinned / 1e9, 2),
            **compared(plan, run),
            "efficiency": round(plan.ideal_ms / 1e3 / run.decode_s, 2),
            "link_busy": round(run.link_busy, 2),
            "cores_busy": round(run.cores_busy, 2),
            "prefill_tok_s": round(options.prompt_tokens / prefill_s, 1),
            "predicted_prefill_tok_s": round(plan.prefill.likely, 1),
            "peak_vram": run.peak,
            "sha256": hashlib.sha256(repr(run.tokens).encode()).hexdigest()[:12],
        }


def rings(options: argparse.Namespace) -> Iterator[Row]:
    """Run streaming with the planned ring, then with others."""
    model = Model(options.shape, "bf16")
    machine = quarter_machine(model, options.cores)
    plan = model.plan(machine, "stream")
    for ring in dict.fromkeys((plan.ring, *RINGS)):
        run = model.run(machine, replace(plan, ring=ring), options.new_tokens, options.prompt_tokens)
        yield {
            "buffers": ring.buffers,
            "kib": ring.bytes // KIB,
            **compared(plan, run),
            "link_busy": round(run.link_busy, 3),
            "cores_busy": round(run.cores_busy, 2),
        }


def compared(plan: Plan, run: Run) -> Row:
    measured = 1 / run.decode_s
    return {
        "decode_tok_s": round(measured, 2),
        "predicted_tok_s": round(plan.decode.likely, 2),
        "error": round(plan.decode.likely / measured - 1, 3),
    }


def predictions(options: argparse.Namespace) -> Iterator[Row]:
    for format, settings in SETTINGS.items():
        if options.format not in (None, format):
            continue
        model = Model(options.shape, format)
        for vram_gib, link, strategy in settings:
            machine = machine_with(vram_gib, link * 1e9)
            setting = {"format": format, "vram_gib": vram_gib, "link_gb_s": link, "strategy": strategy}
            tries, pace = 0, 0.0
            while abs(pace - 1) >= AT_PACE and tries < MOST_TRIES:
                tries += 1
                plan = model.plan(machine, strategy)
                run = model.run(machine, plan, options.new_tokens, options.prompt_tokens)
                cpu = machine.hardware.cpu
                pace = present_paces(machine.kernels, cpu.rates, cpu.call_s)[
                    kin(model.spec.storage(model.spec.linears[0], format))
                ]
            yield setting | compared(plan, run) | {"pace_after": round(pace, 2), "tries": tries}
        del model
        gc.collect()


def phases(options: argparse.Namespace) -> Iterator[Row]:
    """Run decode's shares in all phases and prefill's shares in all phases, alternately."""
    model = Model(options.shape, "int8")
    machine = machine_with(0.375, model.rate(machine_with(0.375, 8e9, options.cores)) / 4, options.cores)
    # Read in one pass, which prefill's shares are meant for.
    plan = replace(model.plan(machine), prefill_chunk=options.prompt_tokens)
    # Whole layers on the CPU belong to decode's shares.
    fixed = {
        name: replace(plan, linears=tuple(everywhere(linear, bucket) for linear in plan.linears), host_layers=hosted)
        for name, bucket, hosted in (("decode's", DECODE, plan.host_layers), ("prefill's", PREFILL, ()))
    }
    runs: dict[str, list[Run]] = {name: [] for name in fixed}
    for _ in range(IN_TURN):
        for name, one in fixed.items():
            runs[name].append(model.run(machine, one, options.new_tokens, options.prompt_tokens))
    for name, one in fixed.items():
        rows = [linear.shares[DECODE] for linear in one.linears]
        everything = sum(linear.rows for linear in one.linears)
        yield {
            "shares": name,
            "resident": round(sum(row.resident for row in rows) / everything, 3),
            "streamed": round(sum(row.streamed for row in rows) / everything, 3),
            "decode_tok_s": round(1 / statistics.median(run.decode_s for run in runs[name]), 2),
            "prefill_tok_s": round(options.prompt_tokens / statistics.median(run.prefill_s for run in runs[name]), 1),
        }


def everywhere(linear: LinearPlan, bucket: int) -> LinearPlan:
    """Use the shares of one phase in every phase."""
    rows = linear.shares[bucket]
    return replace(linear, shares=(rows,) * len(BUCKET_TOKENS))  # type: ignore[arg-type]


def pairs(options: argparse.Namespace) -> Iterator[Row]:
    """Compare exchanges with half of every linear resident: each linear alone, by input, paired, and with heads.

    Paired: down is split by the columns that gate and up are split by rows; with heads: also attention by heads.
    """
    model = Model(options.shape, options.format or "int8")
    machine = machine_with(2, 8e9, options.cores)
    plan = replace(model.plan(machine, "cpu"), ring=Ring(), host_layers=())
    spec = model.spec
    together = tuple(halved(one, linear.rows, -1) for one, linear in zip(plan.linears, spec.linears, strict=True))
    followed = {linear.after for linear in spec.linears if spec.can_follow(linear, plan.format)}
    ways = {
        "apart": tuple(replace(one, group=-1) for one in together),
        "together": together,
        "paired": tuple(
            halved(one, linear.columns, linear.after) if linear.after in followed else one
            for one, linear in zip(together, spec.linears, strict=True)
        ),
    }
    divided = by_heads(spec, ways["paired"], spec.kv_heads(plan.format) // 2)
    ways["heads"] = tuple(replace(one, shares=(one.decode,) * len(BUCKET_TOKENS)) for one in divided)
    plan = replace(plan, kv_devices=(0,) * len(plan.kv_devices))
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(IN_TURN):
        for way, linears in ways.items():
            placed = replace(plan, linears=linears)
            runs[way].append(model.run(machine, placed, options.new_tokens, options.prompt_tokens))
    for way, found in runs.items():
        steps = sorted(1e3 * seconds for run in found for seconds in run.steps_s)
        yield {
            "way": way,
            "decode_ms": [round(1e3 * run.decode_s, 2) for run in found],
            "p20_ms": round(steps[len(steps) // 5], 2),
        }


def halved(plan: LinearPlan, count: int, after: int) -> LinearPlan:
    """Split a linear in two halves, in every phase."""
    half = count // 512 * 256
    rows = Rows(half, 0, count - half)
    return replace(plan, rows=count, shares=(rows, rows, rows, rows), gpu=0, after=after)


def live(options: argparse.Namespace) -> Iterator[Row]:
    """Reduce VRAM from 6 GiB to 1 GiB and restore it during one reply."""
    cut, back, end = 10, 25, 50
    undisturbed = [token for token, _, _ in reply(options, end, {})]
    steps = list(reply(options, end, {cut: GIB, back: 6 * GIB}))
    at = [seconds for _, seconds, _ in steps]
    under = next(index for index in range(cut, back) if steps[index][2] <= GIB)
    yield {
        "identical_tokens": [token for token, _, _ in steps] == undisturbed,
        # From the token before the cut to the token after the change: one token longer than the change itself.
        "seconds_to_be_under_the_cap": round(at[under] - at[cut - 1], 2),
        "stays_under": all(used <= GIB for _, _, used in steps[under:back]),
        "used_before_during_after_mib": [steps[index][2] // MIB for index in (cut - 1, back - 1, end - 1)],
        "tok_s_before_during_after": [
            round((last - first) / (at[last] - at[first]), 1)
            for first, last in ((0, cut - 1), (back - 10, back - 1), (end - 10, end - 1))
        ],
    }


def reply(options: argparse.Namespace, new_tokens: int, capacities: dict[int, int]) -> Iterator[tuple[int, float, int]]:
    """Yield each token's id, its time and the card's bytes in use, resizing the card at the given tokens."""
    wishes = LoadOptions(format="bf16", context=CONTEXT, simulate_gpu="vram=6GiB,link=8GB/s,gpu=100GB/s")
    loaded = next(one for one in load_model(f"shape:{options.shape}", wishes) if isinstance(one, LoadedModel))
    device = loaded.machine.accelerator(0)
    assert isinstance(device, SimulatedAccelerator)
    replanner = Replanner(loaded)
    rng = random.Random(0)
    prompt = [rng.randrange(loaded.spec.vocab) for _ in range(options.prompt_tokens)]
    steps = generate(loaded.model, loaded.cache, prompt, lambda row, _: int(row.argmax()), never)
    tokens = (step for step in steps if isinstance(step, DrawnToken))
    for number, token in zip(range(new_tokens), tokens, strict=False):
        if number in capacities:
            device.resize(capacities[number])
        if (change := replanner.after_token().event) is not None:
            print(f"token {number}: {change.reason}", flush=True)
        yield token.id, time.perf_counter(), device.memory().used
    loaded.close()
    del loaded, steps, tokens, replanner
    gc.collect()


def memory(options: argparse.Namespace) -> Iterator[Row]:
    machine_with(1, 8e9)  # measure now, so that measuring takes no memory later
    gc.collect()
    program = psutil.Process().memory_info().rss
    wishes = LoadOptions(format="bf16", context=CONTEXT, simulate_gpu="vram=1GiB,link=8GB/s")
    # Streaming uses all the planned memory, including the ring.
    loaded = next(one for one in load_model(f"shape:{options.shape}", wishes, "stream") if isinstance(one, LoadedModel))
    loaded.model.forward(range(loaded.plan.prefill_chunk), loaded.cache)
    for token in range(8):
        loaded.model.forward([token], loaded.cache)
    card = loaded.machine.accelerator(0).memory().peak
    held, planned = peak_rss() - program - card, loaded.plan.memory[0].used
    yield {"held": held, "planned": planned, "ratio": round(held / planned, 3), "program": program, "card": card}
    loaded.close()


def main() -> None:
    parts = {
        "strategies": strategies, "rings": rings, "predictions": predictions, "phases": phases, "live": live,
        "pairs": pairs, "memory": memory,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--format", choices=SETTINGS)
    parser.add_argument("--cores", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prepare_environment()
    rows = []
    for row in parts[options.part](options):
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
