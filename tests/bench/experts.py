"""Measures copying versus computing experts beside a simulated card that has room for only some of them.

    python -m tests.bench.experts [--shape qwen3-moe-8l] [--layers N] [--format int4] [--held 0.2] [--link 12]
        [--card 200|cores] [--rounds 3] [--new-tokens 32] [--prompt-tokens 0] [--routing zipf uniform own]
        [--ways ...] [--json]

Ways, run alternately, with medians. `cpu`: the processor alone. `copying`: dense parts and held experts on the card,
and every miss copied. `without`: dense parts on the card, all experts on the processor. `hetegen`: by the measured
rates.

Routers with random weights choose experts at random, so the choice of each layer is drawn here. `zipf`: without
replacement, weighted by 1 / rank with each layer's ranks shuffled (Zipf's law with exponent 1.0). `uniform`: all alike.
`own`: the model's router. Uses of each expert are counted before, as on the next load of a model.

`--card 200`: products on the card take as long as reading their weights at 200 GB/s, without using a core of this
machine. They are not computed, and the link moves no bytes (their time passes, and copies into pinned memory are made):
only the times are meaningful. `--card cores`: the card computes on a processor core of its own, so that card and
processor are equally fast. Keep the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from core.events import LoadOptions
from core.hardware.machine import Machine, open_machine
from core.layers import moe
from core.layers.expert_cache import ExpertCache
from core.layers.expert_trial import BLOCK, BLOCKS, SETTLING
from core.model.language_model import LanguageModel
from core.model.placement import DevicePlacement, HostPlacement
from core.offload.host_weight import DeviceRows
from core.paths import cache_folder
from core.planning.planner import place
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.spec import Budget, KernelRate, LinearPlan, Plan, Ring, Rows
from core.startup.environment import prepare_environment
from core.units import GIB
from core.weights.known_shapes import shape

FASTEST, LAUNCH_S = 1e18, 10e-6
WAYS = ("cpu", "copying", "without", "hetegen")
CONTEXT = 1024
WARM_UP = SETTLING + BLOCK * BLOCKS + 8
"""Tokens before the clock starts: by then the cache has finished its trial."""
Row = dict[str, Any]


class DrawnRouting:
    """Chooses the experts of every layer in place of its router, keeping the router's weights."""

    def __init__(self, module: Any, routing: str) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._scores: dict[int, Tensor] = {}
        for child in module.modules():
            if moe.linears_of(child):
                ranks = torch.randperm(child.num_experts, generator=self._generator) + 1
                self._scores[id(child)] = -ranks.float().log() if routing == "zipf" else torch.zeros(len(ranks))

    def __call__(self, module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Forward like `moe.experts_forward`, with other experts."""
        scores = self._scores[id(module)]
        noise = torch.rand(len(top_k_index), len(scores), generator=self._generator)
        chosen = (scores - (-noise.log()).log()).topk(top_k_index.shape[1]).indices
        return moe.experts_forward(module, hidden_states, chosen, top_k_weights)


def draw_routing(module: Any, routing: str) -> None:
    """Register the routing with transformers."""
    from transformers.integrations.moe import ExpertsInterface

    given = moe.experts_forward if routing == "own" else DrawnRouting(module, routing)
    ExpertsInterface.register(moe.NAME, given)


@dataclass(frozen=True)
class Run:
    """Tokens per second of prompt and reply, and what became of the experts during the reply."""

    prompt_tok_s: float
    tok_s: float
    experts: dict[str, int]


class Bench:
    """A shape in one format with a card, to be placed in each way."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        cut = {} if options.layers is None else {"num_hidden_layers": options.layers}
        config = shape(options.shape) | cut
        with patch("core.model.model_source.shape", lambda name: config):
            steps = load_model(f"shape:{options.shape}", LoadOptions(format=options.format, context=CONTEXT))
            self._loaded = next(step for step in steps if isinstance(step, LoadedModel))
        self.spec = self._loaded.spec
        self.timed = options.card != "cores"
        kind = f"gpu={options.card}GB/s" if self.timed else "cores=1"
        card = f"vram={4 * GIB >> 20}MiB,link={options.link}GB/s,{kind}"
        self.machine: Machine = open_machine(cache_folder(), card)
        self.plan = self._planned()
        self._uses: dict[str, list[float]] = {}

    def count(self) -> None:
        """Count how often each expert is used under this routing."""
        self._uses = {}
        self.run("without")

    def run(self, way: str) -> Run:
        """Place the model in one way, warm up, and time it."""
        module, plan = self._loaded.source.module, self._plan_of(way)
        torch.set_num_threads(plan.threads)
        self.machine.close()
        placement: HostPlacement | DevicePlacement = HostPlacement(module, self._loaded.weights)
        if way != "cpu":
            device = self.machine.accelerator(0)
            placement = DevicePlacement(module, self._loaded.weights, plan, device, self.spec.kv_layers)
            placement.recall_expert_uses(self._uses)
            for _ in placement.apply(plan):
                pass
        draw_routing(module, self.options.routing)
        with nothing_computed_on_the_card() if self.timed and way != "cpu" else nullcontext():
            found = self._timed(LanguageModel(module, placement), plan)
        if isinstance(placement, DevicePlacement) and not self._uses:
            self._uses = placement.expert_uses
        placement.close()
        return found

    def _timed(self, model: LanguageModel, plan: Plan) -> Run:
        rng, cache = random.Random(0), model.placement.make_cache(model.module.config, plan)
        ids = [rng.randrange(self.spec.vocab) for _ in range(CONTEXT)]
        for token in ids[:WARM_UP]:
            model.forward([token], cache)
        cache.reset()
        prompt_s, length = 0.0, self.options.prompt_tokens
        if length:
            began = time.perf_counter()
            model.forward(ids[:length], cache)
            prompt_s = time.perf_counter() - began
        before, steps = self._counts(model), []
        for token in ids[length : length + self.options.new_tokens]:
            began = time.perf_counter()
            model.forward([token], cache)
            steps.append(time.perf_counter() - began)
        after = self._counts(model)
        counts = {name: after[name] - before[name] for name in after}
        return Run(length / prompt_s if length else 0.0, 1 / statistics.median(steps), counts)

    def _counts(self, model: LanguageModel) -> dict[str, int]:
        use = getattr(model.placement, "expert_use", None)
        return {name: getattr(use, name) for name in ("hits", "copied", "computed", "replaced")} if use else {}

    def _planned(self) -> Plan:
        """Plan the dense parts on the card, with the share of all experts' rows given by the option."""
        threads = self.machine.hardware.cpu.threads
        budget = Budget(context=CONTEXT, format=self.options.format, threads=threads)
        plan = place(self.spec, self.machine.now(), budget)
        linears = tuple(
            _rows(linear, 1.0 if item.experts is None else self.options.held)
            for linear, item in zip(plan.linears, self.spec.linears, strict=True)
        )
        on_card = (0,) * len(self.spec.kv_layers)
        rates = plan.expert_rates
        assert rates is not None
        if self.timed:
            rate = KernelRate(rates.card.storage, float(self.options.card) * 1e9, (FASTEST,) * 4)
            rates = replace(rates, card=rate, apart=True, call_s=LAUNCH_S)
        return replace(
            plan, gpu=0, linears=linears, host_layers=(), kv_devices=on_card, ring=Ring(), expert_rates=rates
        )

    def _plan_of(self, way: str) -> Plan:
        if way == "copying":
            return replace(self.plan, strategy="stream")
        if way == "without":
            pairs = zip(self.plan.linears, self.spec.linears, strict=True)
            linears = tuple(linear if item.experts is None else _rows(linear, 0.0) for linear, item in pairs)
            return replace(self.plan, linears=linears, expert_rates=None)
        return self.plan


@contextmanager
def nothing_computed_on_the_card() -> Iterator[None]:
    """Let operations of the simulated card take their time, without computing."""

    def nothing(rows: DeviceRows, x: Any, bias: Tensor | None = None) -> Tensor:
        given = x if isinstance(x, Tensor) else x.x
        return given.new_zeros(given.shape[0], rows.rows)

    def zeros(x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        return torch.zeros_like(x)

    with (
        patch.object(DeviceRows, "linear", nothing),
        patch.object(ExpertCache, "_in_ram", lambda cache: zeros),
        patch("core.accelerators.simulated_queues.copy_past_caches", lambda to, start, nbytes: None),
    ):
        yield


def _rows(linear: LinearPlan, part: float) -> LinearPlan:
    resident = round(part * linear.rows)
    rows = Rows(resident, 0, linear.rows - resident)
    return replace(linear, shares=(rows, rows, rows, rows), gpu=0)


def compare(bench: Bench, ways: list[str]) -> Iterator[Row]:
    """Run all ways alternately several times and yield medians."""
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(bench.options.rounds):
        for way in ways:
            runs[way].append(bench.run(way))
    for way in ways:
        yield {
            "way": way,
            "routing": bench.options.routing,
            "tok_s": round(statistics.median(run.tok_s for run in runs[way]), 2),
            "prompt_tok_s": round(statistics.median(run.prompt_tok_s for run in runs[way]), 1),
            "all": [round(run.tok_s, 2) for run in runs[way]],
            "experts": runs[way][-1].experts,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-moe-8l")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--format", default="int4")
    parser.add_argument("--held", type=float, default=0.2)
    parser.add_argument("--link", type=float, default=12.0)
    parser.add_argument("--card", default="200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=0)
    parser.add_argument("--routing", nargs="*", choices=("zipf", "uniform", "own"), default=["zipf", "uniform"])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prepare_environment()
    bench, routings = Bench(options), options.routing
    for routing in routings:
        options.routing = routing
        bench.count()
        for row in compare(bench, options.ways):
            print(json.dumps(row) if options.json else row, flush=True)


if __name__ == "__main__":
    main()
