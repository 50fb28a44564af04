"""The loaded model and its limits: loading, unloading when idle, waking and re-planning. Keeps the `State`.

Knows no conversation; `session` asks and answers with the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from app.engine.app_state import GUIDE, Phase, State, name_of
from app.engine.task_thread import Defect
from app.engine.worker import Worker
from app.notices import notices
from core.errors import HeteGenError
from core.events import Checked, Event, Failed, Finished, Loaded, Loading, LoadOptions, Replanned, Unloaded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wished:
    """A model to load, and how."""

    source: str
    options: LoadOptions


class ModelSession(QObject):
    """Loads the model and tracks its state.

    Signals: `changed(State)`; `notice(Notice)`; `withdrawn(Notice)` when a notice no longer applies; `checked(Wished)`
    when a model is to be loaded that was checked, `refused` when one cannot be; `ready(Loaded)` after a load; `ended`
    when a load fails or is cancelled.
    """

    changed = Signal(object)
    notice = Signal(object)
    withdrawn = Signal(object)
    checked = Signal(object)
    refused = Signal()
    ready = Signal(object)
    ended = Signal()

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.state = State()
        self._worker = worker
        self._load_ticket = self._plan_ticket = self._check_ticket = 0
        self.wished: Wished | None = None
        """What was to be loaded last, whether it could be or not."""
        self.former: State | None = None
        """The state before a load, until one succeeds: with the model that was in use, or rested, then."""
        self._former_answers = False
        """Whether the engine still has that model."""
        self._told = notices.no_model()
        """What was said last about a load that ended without a model."""
        worker.told.connect(self._on_event)
        worker.failed.connect(self._on_failed)
        worker.checks.told.connect(self._on_check_event)
        worker.checks.failed.connect(self._on_check_failed)

    def change(self, **fields: Any) -> None:
        """Replace these fields of the state and emit `changed`."""
        self._set(replace(self.state, **fields))

    def check(self, source: str, options: LoadOptions) -> None:
        """Find out whether another model can be loaded, while the reply goes on. Replaces an earlier check."""
        self._end_check()
        self._withdraw()
        self.wished = Wished(source, options)
        self._check_ticket = self._worker.check(source, options)
        self.change(candidate=source, loading=Loading("read", 0))

    def load(self, source: str, options: LoadOptions) -> None:
        """Load another model. The one in use answers again if the new one turns out to be unusable in time."""
        self._end_check()
        self._load_ticket = self._worker.load(source, options)
        self._withdraw()
        if self.state.phase not in ("empty", "loading"):
            self.former, self._former_answers = self.state, True
        self.wished = Wished(source, options)
        begun = self.state.begun or self.state.stats is not None
        begins = Loading("start", 0)
        self.change(
            phase="loading", source=source, model=None, loading=begins, prefill=None, stats=None, begun=begun,
            options=options,
        )  # fmt: skip

    def cancel_load(self) -> None:
        """Cancel the running load, or the check before it."""
        if self.state.candidate:
            self._refuse(notices.load_cancelled(name_of(self.state.candidate)))
        elif self.state.phase == "loading":
            self._worker.stop_all()

    def replan(self, options: LoadOptions) -> None:
        """Apply other memory limits to the loaded model; its weights move after the running reply."""
        if self.state.model is not None:
            self._plan_ticket = self._worker.replan(options.vram, options.ram)
        self.change(options=options)

    def after_sleep(self) -> None:
        """Plan again after a sleep, which may have changed the graphics card's state."""
        model = self.state.model
        if model is not None and model.hardware is not None and model.hardware.gpus:
            self.replan(self.state.options)

    def rest(self) -> None:
        """Unload the model until the next question."""
        if self.state.phase == "ready":
            self._worker.unload()
            self.change(phase="resting", model=None, stats=None)

    def wake(self) -> None:
        """Load a resting model again."""
        if self.state.phase == "resting":
            self.load(self.state.source, self.state.options)

    def on_replanned(self, event: Replanned) -> None:
        """Store the new plan; post a notice if linears moved."""
        model = self.state.model
        if event.plan is not None and model is not None:
            self.change(model=replace(model, plan=event.plan))
            if model.plan is not None and model.plan.linears == event.plan.linears:
                return
        self.notice.emit(notices.replanned(event.reason))

    def _set(self, state: State) -> None:
        self.state = state
        self.changed.emit(state)

    @Slot(int, object)
    def _on_event(self, ticket: int, event: Event) -> None:
        if isinstance(event, Unloaded):  # also by a load that another one has replaced
            self._former_answers = False
        elif ticket == self._load_ticket:
            self._on_load_event(event)
        elif ticket == self._plan_ticket:
            self._on_plan_event(event)

    @Slot(int, object)
    def _on_check_event(self, ticket: int, event: Event) -> None:
        if ticket != self._check_ticket:
            return
        match event:
            case Loading():
                self.change(loading=event)
            case Checked():
                self._end_check()
                self.checked.emit(self.wished)
            case Failed(error):
                log.warning("The model cannot be loaded: %s", error)
                self._refuse(notices.for_load(error))
            case _:
                pass

    @Slot(int, object)
    def _on_check_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._check_ticket:
            self._refuse(failure_notice(error))

    def _refuse(self, notice: notices.Notice) -> None:
        """Keep the model in use: another one was found to be unusable."""
        self._end_check()
        self._told = notice if self.state.model is None else notices.with_model(notice, self.state.model.name)
        self.notice.emit(self._told)
        self.refused.emit()

    def _end_check(self) -> None:
        self._worker.checks.stop(self._check_ticket)
        self._check_ticket = 0
        if self.state.candidate:
            self.change(candidate="", loading=None)

    def _on_load_event(self, event: Event) -> None:
        match event:
            case Loading():
                self.change(loading=event)
            case Loaded():
                model = replace(event, name=GUIDE if name_of(self.state.source) == GUIDE else event.name)
                self.former = None
                self.change(phase="ready", model=model, loading=None)
                self.ready.emit(model)
            case Finished():
                self._end_load(notices.load_cancelled(name_of(self.state.source)))
            case Failed(error):
                log.warning("Loading failed: %s", error)
                self._end_load(notices.for_load(error))
            case _:
                pass

    def _on_plan_event(self, event: Event) -> None:
        match event:
            case Replanned():
                self.on_replanned(event)
            case Failed(error):
                log.warning("Planning anew failed: %s", error)
                self.notice.emit(notices.for_error(error))
            case _:
                pass

    def _end_load(self, notice: notices.Notice) -> None:
        """Return to the former model if the engine still has it; else offer it again."""
        self.ended.emit()
        former = self.former
        if former is None:
            self.change(phase="empty", loading=None, model=None, asked=False)
        elif self._former_answers:
            phase: Phase = "resting" if former.model is None else "ready"
            kept = {"source": former.source, "model": former.model, "options": former.options}
            self.change(phase=phase, loading=None, asked=False, **kept)
            notice = notice if former.model is None else notices.with_model(notice, former.model.name)
        else:
            self.change(phase="empty", loading=None, model=None, asked=False)
            name = former.model.name if former.model else name_of(former.source)
            notice = notices.without_model(notice, name)
        self._told = notice
        self.notice.emit(notice)

    def _withdraw(self) -> None:
        """Take back what was said about the last load, and that there is no model."""
        for notice in (self._told, notices.no_model()):
            self.withdrawn.emit(notice)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._load_ticket:
            self._end_load(notices.for_defect(error.details) if isinstance(error, Defect) else notices.for_load(error))
        elif ticket == self._plan_ticket:
            self.notice.emit(failure_notice(error))


def failure_notice(error: HeteGenError) -> notices.Notice:
    """Return the notice for a command that the worker could not carry out: a failure with a next step, or a bug."""
    return notices.for_defect(error.details) if isinstance(error, Defect) else notices.for_error(error)
