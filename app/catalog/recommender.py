"""Finds the recommended model that suits this machine best, in a worker thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from app.catalog.recommended import Recommended
from app.engine.task_thread import TaskThread, Tell
from core.events import Stop
from core.hub.fit import Fit, FitCheck, Wishes
from core.spec import COMFORTABLE_TOK_S

MOST_DOWNLOAD_BYTES = 20e9
"""Largest download suggested to a new user."""


@dataclass(frozen=True)
class Recommendation:
    """A model to download, and the planner's verdict for this machine."""

    model: Recommended
    fit: Fit


class Recommender(QObject):
    """Judges the recommended models in a worker thread.

    Signal: `found(Recommendation)` once, some time after `ask`; never if no model suits.
    """

    found = Signal(object)

    def __init__(self, check_fit: FitCheck, models: Sequence[Recommended]) -> None:
        super().__init__()
        self._check_fit, self._models = check_fit, models
        self._asked = False
        self._may_work = threading.Event()
        self._may_work.set()
        self._tasks = TaskThread("advice")
        self._tasks.done.connect(self._on_done)

    def ask(self) -> None:
        """Start judging; later calls do nothing."""
        if not self._asked:
            self._asked = True
            self._tasks.run(self._work)

    def pause(self, paused: bool) -> None:
        """Suspend judging before the next model, while a model is loaded or a reply is written."""
        (self._may_work.clear if paused else self._may_work.set)()

    def close(self) -> None:
        """End the thread."""
        self._may_work.set()
        self._tasks.close()

    def _work(self, stop: Stop, tell: Tell) -> Recommendation | None:
        def check_fit(config: Any, tensors: Any, wishes: Wishes) -> Fit:
            self._may_work.wait()
            return self._check_fit(config, tensors, wishes)

        return best(self._models, check_fit, stop)

    @Slot(int, object)
    def _on_done(self, ticket: int, advice: Recommendation | None) -> None:
        if advice is not None:
            self.found.emit(advice)


def best(models: Sequence[Recommended], check_fit: FitCheck, stop: Stop) -> Recommendation | None:
    """Return the largest model that runs comfortably and is not too large to download, else the fastest one."""
    runs: list[Recommendation] = []
    for model in sorted((model for model in models if not model.gated), key=lambda each: -each.parameters):
        if stop():
            return None
        fit = check_fit(model.config, {}, Wishes())
        if fit.kind == "no" or fit.stored_bytes > MOST_DOWNLOAD_BYTES:
            continue
        runs.append(Recommendation(model, fit))
        if fit.tok_s.likely >= COMFORTABLE_TOK_S:
            return runs[-1]
    return max(runs, key=lambda advice: advice.fit.tok_s.likely, default=None)
