"""Finds the one recommended model that suits this machine best, in a thread, while the guide is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QObject, Signal, Slot

from app.catalog.recommended import Recommended
from app.engine.task_thread import Lane, Tell
from core.events import Stop
from core.hub.fit import Judge, Verdict, Wishes

COMFORTABLE_TOK_S = 8.0
"""About as fast as people read."""
MOST_DOWNLOAD_BYTES = 20e9
"""Who has just started is not sent to fetch more than this."""


@dataclass(frozen=True)
class Advice:
    """A model to get, and what the planner says of it here."""

    model: Recommended
    verdict: Verdict


class Adviser(QObject):
    """`advised(Advice)` once, some time after `ask`; nothing if no model suits."""

    advised = Signal(object)

    def __init__(self, judge: Judge, models: Sequence[Recommended]) -> None:
        super().__init__()
        self._judge, self._models = judge, models
        self._asked = False
        self._lane = Lane("advice")
        self._lane.done.connect(self._on_done)

    def ask(self) -> None:
        """Begins to look; later calls do nothing."""
        if not self._asked:
            self._asked = True
            self._lane.run(self._work)

    def close(self) -> None:
        """Ends the thread."""
        self._lane.close()

    def _work(self, stop: Stop, tell: Tell) -> Advice | None:
        return best(self._models, self._judge, stop)

    @Slot(int, object)
    def _on_done(self, ticket: int, advice: Advice | None) -> None:
        if advice is not None:
            self.advised.emit(advice)


def best(models: Sequence[Recommended], judge: Judge, stop: Stop) -> Advice | None:
    """The largest model that runs comfortably and is not too much to fetch; else the fastest that runs at all."""
    runs: list[Advice] = []
    for model in sorted((model for model in models if not model.gated), key=lambda each: -each.parameters):
        if stop():
            return None
        verdict = judge(model.config, {}, Wishes())
        if verdict.kind == "no" or verdict.stored_bytes > MOST_DOWNLOAD_BYTES:
            continue
        runs.append(Advice(model, verdict))
        if verdict.tok_s.likely >= COMFORTABLE_TOK_S:
            return runs[-1]
    return max(runs, key=lambda advice: advice.verdict.tok_s.likely, default=None)
