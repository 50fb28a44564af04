"""Soak test: one model on the second device whose plan, memory and card change all the time.

    python -m tests.bench.soak [--minutes 30] [--seed 0] [--family llama]

Each round asks the same question and disturbs its answer: by a random plan, other limits, a card that shrinks, fills
up, is lost or comes back, or by stopping the reply. Every answer must equal the CPU's (a stopped one its beginning), no
access to the card's memory may be out of order, and memory must not grow. Prints one JSON line at the end. Exits with 1
at the first round that breaks a rule, naming it. `malloc_mb` are pairs of what glibc has in use and what it keeps free:
after the first rounds, at the end, and after `malloc_trim`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.engine import Engine
from core.errors import DeviceLost, NotEnoughMemory
from core.events import Failed, Finished, LoadOptions, Message, Piece, Replanned, Request, Sampling
from core.runtime.loaded_model import LoadedModel
from core.spec import BUCKET_TOKENS, KvLayer, LinearPlan, Plan, Ring, Rows
from core.startup.environment import prepare_environment
from tests.core.offload.test_hetero_linear import by_heads, pairs_of
from tests.core.second_device import SecondDevice, put_in, second_device
from tests.core.tiny_tokenizer import chat_model

CARD = "vram=60MiB,link=2GB/s,gpu=100GB/s"
CARD_BYTES, SMALL_BYTES, NO_LIMIT = 60 << 20, 12 << 20, 1e9
WARM_ROUNDS = 40
"""Memory is compared with its size after these rounds, when every path has run."""
MOST_GROWTH = 128 << 20
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 5}


@dataclass
class Soak:
    """One engine under test, and what has happened to it so far."""

    engine: Engine
    device: SecondDevice
    chance: random.Random
    expected: str = ""
    happened: Counter[str] = field(default_factory=Counter)
    launches: int = 0

    @property
    def loaded(self) -> LoadedModel:
        assert self.engine.loaded is not None
        return self.engine.loaded

    def round(self) -> str:
        """Ask once, disturb the answer, and return what was wrong ('' for nothing)."""
        name, disturb = self.chance.choice(DISTURBANCES)
        self.happened[name] += 1
        at, stopped, pieces = self.chance.randint(1, 12), [False], list[str]()
        last: object = None
        for last in self.engine.chat(ask(), lambda: stopped[0]):
            self.happened["re-planned"] += isinstance(last, Replanned)
            if isinstance(last, Piece):
                pieces.append(last.text)
                if len(pieces) == at:
                    stopped[0] = disturb(self) is STOPPED
        return self._wrong(name, last, "".join(pieces), stopped=stopped[0]) or self._recover()

    def _wrong(self, name: str, last: object, text: str, *, stopped: bool) -> str:
        if not isinstance(last, Finished):
            return f"{name}: {last}"
        if not (self.expected.startswith(text) if stopped else text == self.expected):
            return f"{name}: other words: {text!r}"
        return self.device.violation()

    def _recover(self) -> str:
        """Every other time, restore the whole card and look for it."""
        if self.chance.random() < 0.5:
            return ""
        self.launches += self.device.get("launches")
        self.device.plug(True)  # as after a driver reset, which clears a failed launch
        self.device.set(capacity=CARD_BYTES, link=self.chance.choice((50e6, 2e9)))
        (event,) = self.engine.replan(None, None)
        self.happened["looked for the card"] += 1
        return f"looked for: {event}" if isinstance(event, Failed) else ""


def ask() -> Request:
    """Return the request, always the same."""
    return Request((Message("user", "Who is the fox?"),), Sampling(temperature=0, max_new_tokens=24))


STOPPED = object()


def stop(_: Soak) -> object:
    return STOPPED


def any_plan(soak: Soak) -> None:
    """Apply a random plan: splits that no planner would choose, layers on the CPU alone, states here and there."""
    move(soak, random_plan(soak.loaded, soak.chance))


def move(soak: Soak, plan: Plan) -> None:
    try:
        soak.loaded.move_to(plan)
    except NotEnoughMemory:
        soak.happened["full"] += 1
        soak.loaded.avoid_device()
    except DeviceLost:
        soak.happened["lost while moving"] += 1
        soak.loaded.avoid_device()


def to_the_cpu(soak: Soak) -> None:
    soak.loaded.avoid_device()


def shrink(soak: Soak) -> None:
    soak.device.set(capacity=SMALL_BYTES)


def grow(soak: Soak) -> None:
    soak.device.set(capacity=CARD_BYTES, full_after=NO_LIMIT)


def fill(soak: Soak) -> None:
    soak.device.set(full_after=soak.chance.randint(0, 30))
    soak.device.set(full_times=soak.chance.choice((1, 2, 5)))


def lose(soak: Soak) -> None:
    soak.device.set(lost=1)


def fail_later(soak: Soak) -> None:
    soak.device.set(fail_after=soak.chance.randint(1, 200))


def limit(soak: Soak) -> None:
    """Change a limit in the middle of a reply, as from the settings."""
    soak.loaded.limit(soak.chance.choice((SMALL_BYTES, 2 * SMALL_BYTES, None)), None)


def nothing(_: Soak) -> None:
    """No disturbance."""


DISTURBANCES: list[tuple[str, Callable[[Soak], object]]] = [
    ("any plan", any_plan), ("any plan", any_plan), ("any plan", any_plan), ("any plan", any_plan),
    ("left the card", to_the_cpu), ("shrunk", shrink), ("grown", grow), ("filled up", fill), ("lost", lose),
    ("a launch failed", fail_later), ("limited", limit), ("stopped", stop), ("undisturbed", nothing),
]  # fmt: skip


def random_plan(loaded: LoadedModel, chance: random.Random) -> Plan:
    """Return a random split of every linear, with the same residents in every phase; CPU layers have none."""
    spec = loaded.spec
    hosted = {number for number in range(spec.layers) if chance.random() < 0.3}
    linears = []
    for linear in spec.linears:
        resident = 0 if linear.layer in hosted else chance.choice((0, linear.rows, chance.randint(0, linear.rows)))
        shares = []
        for bucket in range(len(BUCKET_TOKENS)):
            rest = linear.rows - resident
            away = chance.choice((0, rest, chance.randint(0, rest)))
            away = 0 if linear.layer in hosted and bucket < 2 else away
            shares.append(Rows(resident, away, rest - away))
        linears.append(
            LinearPlan(linear.name, linear.rows, (shares[0], shares[1], shares[2], shares[3]), 0, linear.group)
        )
    if chance.random() < 0.5:
        linears = list(pairs_of(spec, tuple(linears)))
    if chance.random() < 0.3 and spec.kv_heads("bf16") and not hosted:
        linears = list(by_heads(spec, tuple(linears), 1))
    ring = Ring(chance.randint(1, 4), chance.choice((4096, 65536, 1 << 20)), chance.randint(1, 2))
    return replace(
        loaded.plan, gpu=0, linears=tuple(linears), kv_devices=tuple(_homes(spec.kv_layers, chance)),
        host_layers=tuple(sorted(hosted)), ring=ring, strategy=chance.choice(("hetegen", "hetegen", "serial")),
    )  # fmt: skip


def _homes(layers: tuple[KvLayer, ...], chance: random.Random) -> list[int]:
    return [chance.choice((0, -1)) for _ in layers]


@contextmanager
def soaking(seed: int, family: str) -> Iterator[Soak]:
    """An engine whose card is the second device, after a first answer by the CPU."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for variable in ("HETEGEN_HOME", "HF_HOME"):
            patch.setenv(variable, str(Path(folder, variable)))
        patch.setattr("core.runtime.replanner.LOOK_EVERY_S", 0.05)
        patch.setattr("core.runtime.replanner.RETURN_EVERY_S", 0.5)
        device, model = second_device(), chat_model(Path(folder, "model"), family, **SIZES)
        device.plug(True)
        put_in(device, patch)
        soak = Soak(Engine(), device, random.Random(seed))
        soak.expected = first_answer(soak, model)
        list(soak.engine.load(model, LoadOptions(context=512, simulate_gpu=CARD)))
        yield soak
        soak.engine.close()


def first_answer(soak: Soak, model: Path) -> str:
    """Return the CPU's answer."""
    list(soak.engine.load(model, LoadOptions(context=512)))
    events = list(soak.engine.chat(ask()))
    assert isinstance(events[-1], Finished), events[-1]
    return "".join(event.text for event in events if isinstance(event, Piece))


def run(soak: Soak, seconds: float) -> dict[str, Any]:
    """Run rounds until the time is over or one breaks a rule; return the figures."""
    until, rounds, wrong, warm, most, course = time.monotonic() + seconds, 0, "", 0, 0, list[int]()
    kept: dict[str, tuple[int, int]] = {}
    while time.monotonic() < until and not wrong:
        wrong, rounds = soak.round(), rounds + 1
        if rounds % 10 == 0:
            gc.collect()
            now = psutil.Process(os.getpid()).memory_info().rss
            if rounds == WARM_ROUNDS:
                warm, kept["warm"] = now, malloc_mb()
            most = max(most, now) if warm else 0
            course += [now >> 20] if rounds % 100 == 0 else []
            if warm and now - warm > MOST_GROWTH:
                wrong = f"memory grew from {warm} to {now} bytes"
    soak.device.set(lost=0)
    kept["end"] = malloc_mb()
    trim()
    kept["trimmed"] = malloc_mb()
    return {
        "rounds": rounds, "wrong": wrong, "happened": dict(soak.happened), "warm_rss": warm, "most_rss": most,
        "last_rss": psutil.Process(os.getpid()).memory_info().rss, "launches": soak.launches,
        "rss_mb_every_100": course, "malloc_mb": kept,
    }  # fmt: skip


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2: bytes over all arenas."""

    _fields_ = (
        ("others", ctypes.c_size_t * 7), ("in_use", ctypes.c_size_t), ("free", ctypes.c_size_t),
        ("at_the_top", ctypes.c_size_t),
    )  # fmt: skip


def malloc_mb() -> tuple[int, int]:
    """Return glibc's MB in use and free; zeros with another C library."""
    asked = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if asked is None:
        return 0, 0
    asked.restype = Mallinfo
    found = asked()
    return found.in_use >> 20, found.free >> 20


def trim() -> None:
    """Return free pages to the system, if glibc supports it."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> int:
    """Run the soak test and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="llama")
    options = parser.parse_args()
    prepare_environment()
    with soaking(options.seed, options.family) as soak:
        figures = run(soak, 60 * options.minutes)
    gc.collect()
    figures |= {"left_on_the_card": soak.device.get("used"), "left_pinned": soak.device.get("pinned")}
    print(json.dumps(figures))
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
