"""Measures the window's tick delays while a random model computes on all cores, and how soon Stop works.

`python -m tests.bench.responsiveness [--shape llama-3.2-1b] [--seconds 60] [--prompt-tokens 4000]` prints one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

WORDS = [
    "A",
    "line",
    "with",
    "**bold**",
    "words",
    "and",
    "`code`,",
    "as",
    "models",
    "write",
    "them.\n\n-",
    "an",
    "item\n-",
    "another\n\n",
]


class RandomModel:
    """The real engine's loading and forward passes, with made-up words instead of a tokenizer."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._loaded: Any = None

    def load(self, source: str, options: Any, stop: Any) -> Iterator[Any]:
        from core.events import Loaded
        from core.runtime.loaded_model import LoadedModel
        from core.runtime.loader import load_model
        from core.startup.environment import prepare_environment

        prepare_environment()
        for step in load_model(source, options):
            if isinstance(step, LoadedModel):
                self._loaded = step
                yield Loaded("random", "llama", step.plan.format, step.cache.capacity, 0, 0, 0.0, plan=step.plan)
            else:
                yield step

    def chat(self, request: Any, stop: Any) -> Iterator[Any]:
        from core.events import Finished, Piece, Prefill, Stats
        from core.model.language_model import ForwardStopped

        model, cache = self._loaded.model, self._loaded.cache
        cache.reset()
        long = "long" in request.messages[-1].content
        prompt = [7] * (self._prompt_tokens if long else 64)
        chunk = self._loaded.plan.prefill_chunk
        for start in range(0, len(prompt), chunk):
            if stop():
                yield Finished("stopped", Stats())
                return
            yield Prefill(start, len(prompt), 0)
            try:
                model.forward(prompt[start : start + chunk], cache, stop)
            except ForwardStopped:
                yield Finished("stopped", Stats())
                return
        made = 0
        while not stop() and made < cache.capacity - len(prompt) - 8:
            model.forward([11], cache)
            made += 1
            yield Piece(WORDS[made % len(WORDS)] + " ")
            yield Stats(len(prompt), 0, made, 0.1, 100.0, 10.0, 10.0, made, cache.capacity)
        yield Finished("stopped", Stats(new_tokens=made))

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = home
        print(json.dumps(measure(args)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure ticks while loading and generating, then Stop during prefill."""
    from PySide6.QtWidgets import QApplication

    from app.application import Application, StartOptions
    from core.events import LoadOptions
    from tests.bench.ticks import Ticks

    qt = QApplication.instance() or QApplication([])
    app = Application(
        StartOptions(f"shape:{args.shape}", LoadOptions(context=args.prompt_tokens + 2000)),
        lambda: RandomModel(args.prompt_tokens),
    )
    ticks = Ticks()

    def until(met: Any, limit: float = 600) -> float:
        began = time.perf_counter()
        while not met() and time.perf_counter() - began < limit:
            qt.processEvents()
            time.sleep(0.0005)
        return time.perf_counter() - began

    app.window.show()
    until(lambda: app.session.state.source)
    ticks.reset()
    load_s = until(lambda: app.session.state.phase in ("ready", "empty"))
    result: dict[str, Any] = {"load_s": round(load_s, 1), "load": ticks.summary()}
    result["notices"] = [notice.sentence for notice in app.window.notices.notices]
    app.session.submit("Write")
    until(lambda: app.session.state.phase == "replying")
    ticks.reset()
    until(lambda: False, args.seconds)
    result["decode"] = ticks.summary()
    result["pieces"] = len(app.chat.turn(1).content.split())
    began = time.perf_counter()
    app.session.stop()
    until(lambda: not app.session.state.busy)
    result["stop_decode_s"] = round(time.perf_counter() - began, 3)
    app.session.submit("long")
    until(
        lambda: app.session.state.prefill is not None and app.session.state.prefill.done > 0,
        120,
    )
    ticks.reset()
    began = time.perf_counter()
    app.session.stop()
    until(lambda: not app.session.state.busy)
    result["stop_prefill_s"] = round(time.perf_counter() - began, 3)
    app.close()
    return result


if __name__ == "__main__":
    main()
