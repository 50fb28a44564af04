"""The engine's interface: load a model, chat with it, close it. All results are events.

The only state is the loaded model with its KV cache, and a model that was checked to be loaded next. One thread uses it
at a time; `check` may be called in another one during a reply.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadRequest, HeteGenError
from core.events import (
    Checked,
    Counted,
    Event,
    Failed,
    Finished,
    Loaded,
    Loading,
    LoadOptions,
    Request,
    Stats,
    Stop,
    Unloaded,
    never,
)
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import Opened, check_room, load_opened, open_model
from core.runtime.prompt import prompt_ids
from core.runtime.replanner import Replanner
from core.runtime.reply import Reply
from core.startup.environment import prepare_environment
from core.startup.full_speed import keep_full_speed

__all__ = ["Engine", "LoadOptions"]

DEFAULTS = LoadOptions()
PROGRESS_INTERVAL_S = 0.03
"""Minimum interval of progress events: showing each one would delay the load itself."""


@dataclass(frozen=True)
class _Checked:
    """A model that can be loaded, and what was asked for."""

    source: str | Path | None
    options: LoadOptions
    opened: Opened


class Engine:
    """Hosts one model at a time. `load`, `chat` and `replan` yield events."""

    def __init__(self) -> None:
        prepare_environment()
        keep_full_speed()
        self.loaded: LoadedModel | None = None
        """The model in use; None before the first load and after `close`."""
        self._checked: _Checked | None = None
        """What the last check has opened, until the next command."""

    def load(
        self, source: str | Path | None = None, options: LoadOptions = DEFAULTS, stop: Stop = never
    ) -> Iterator[Event]:
        """Load a model. `source`: a folder, a Hub id, None = the built-in model.

        The model in use is closed before weights are read, but only once the new one is known to be readable and to
        fit: then Unloaded is yielded, and a failure leaves no model.
        """
        began = told = time.perf_counter()
        phase = ""
        try:
            for step in self._steps(source, options):
                now = time.perf_counter()
                if isinstance(step, LoadedModel):
                    self.loaded = step
                    yield _describe(step, now - began)
                elif isinstance(step, Unloaded):
                    yield step
                elif stop():
                    yield Finished("stopped", Stats())
                    return
                elif step.phase != phase or now - told > PROGRESS_INTERVAL_S:
                    phase, told = step.phase, now
                    yield step
        except HeteGenError as error:
            yield Failed(error)

    def check(self, source: str | Path | None, options: LoadOptions = DEFAULTS, stop: Stop = never) -> Iterator[Event]:
        """Find out whether a model can be loaded in place of the one in use, which stays, and may reply meanwhile in
        another thread. A load of it that follows reads nothing again. Yields Loading, then Checked or Failed."""
        self._checked = None
        try:
            opened = yield from self._open(source, options)
            if not stop():
                self._checked = _Checked(source, options, opened)
                yield Checked()
        except HeteGenError as error:
            yield Failed(error)

    def _open(self, source: str | Path | None, options: LoadOptions) -> Generator[Loading, None, Opened]:
        opened = yield from open_model(source, options)
        if (present := self.loaded) is not None:
            check_room(opened, present)
        return opened

    def _take_checked(self, source: str | Path | None, options: LoadOptions) -> Opened | None:
        """Return what the last check has opened if it was this model, once: its files may change later."""
        checked, self._checked = self._checked, None
        known = checked is not None and (checked.source, checked.options) == (source, options)
        return checked.opened if checked is not None and known else None

    def _steps(self, source: str | Path | None, options: LoadOptions) -> Iterator[Loading | Unloaded | LoadedModel]:
        opened = self._take_checked(source, options)
        if opened is None:
            opened = yield from self._open(source, options)
        else:
            yield Loading("start", 0.0)  # a load that was stopped while it waited ends here
        if self.loaded is not None:
            self.close()
            yield Unloaded()
        yield from load_opened(opened)

    def chat(self, request: Request, stop: Stop = never) -> Iterator[Event]:
        """Answer the last message: pieces as soon as they are certain, Stats a few times a second, then Finished or
        Failed."""
        self._checked = None
        try:
            if self.loaded is None:
                raise BadRequest("No model is loaded.", "", "Load a model first.")
            yield from Reply(self.loaded, request, stop).events()
        except HeteGenError as error:
            yield Failed(error)

    def count(self, request: Request) -> Iterator[Event]:
        """Count the tokens of a request's prompt without answering. Yields Counted or Failed."""
        try:
            if self.loaded is None:
                raise BadRequest("No model is loaded.", "", "Load a model first.")
            yield Counted(len(prompt_ids(self.loaded, request)))
        except HeteGenError as error:
            yield Failed(error)

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        """Apply new memory limits, in bytes, to the loaded model: weights move, nothing is loaded again. Also looks for
        a device that was lost. Yields Replanned or Failed."""
        try:
            if self.loaded is None:
                raise BadRequest("No model is loaded.", "", "Load a model first.")
            yield Replanner(self.loaded, self.loaded.profile).keep_to(vram, ram)
        except HeteGenError as error:
            yield Failed(error)

    def close(self) -> None:
        """Close the model and free its memory."""
        self._checked = None
        if self.loaded is None:
            return
        self.loaded.close()
        self.loaded = None
        # The module tree has cycles, and mapped files stay open (on Windows: locked) until they are collected.
        gc.collect()


def _describe(loaded: LoadedModel, seconds: float) -> Loaded:
    return Loaded(
        name=loaded.name,
        architecture=loaded.spec.architecture,
        format=loaded.plan.format,
        context=loaded.cache.capacity,
        parameters=loaded.spec.parameters,
        weight_bytes=loaded.spec.weight_bytes(loaded.plan.format),
        load_s=seconds,
        can_chat=loaded.tokenizer is not None and loaded.tokenizer.can_chat,
        sees=loaded.sees,
        plan=loaded.plan,
        spec=loaded.spec,
        hardware=loaded.machine.now(),
    )
