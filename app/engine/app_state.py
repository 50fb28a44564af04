"""What the views need to know at any time, as one frozen record: the model, what is being done, the latest figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from app import NAME
from core.events import Loaded, Loading, LoadOptions, Prefill, Stats
from core.paths import builtin_model
from core.remote.endpoint import PREFIX, parse_source

GUIDE = f"{NAME} guide"
Phase = Literal["empty", "loading", "ready", "resting", "reading", "replying", "calling"]
"""resting: the model was given up to free its memory, and comes back with the next question; calling: a tool that the
reply asked for waits for the user, or runs."""


@dataclass(frozen=True)
class State:
    """What the views need to know at any time. `model` is None until one is loaded."""

    phase: Phase = "empty"
    source: str = ""
    model: Loaded | None = None
    loading: Loading | None = None
    prefill: Prefill | None = None
    stats: Stats | None = None
    begun: bool = False
    """The conversation was there already: how much of the context it fills shows with the next reply."""
    asked: bool = False
    """A question waits for the model that is being loaded."""
    options: LoadOptions = field(default_factory=LoadOptions)
    """What was asked for: of the load, and since then of its memory."""

    @property
    def busy(self) -> bool:
        """A reply is awaited or runs."""
        return self.asked or self.phase in ("reading", "replying", "calling")

    @property
    def figures(self) -> Stats | None:
        """The figures to show: the speed is that of now while a reply is written, else the mean of the last one; before
        the first one only the context is known."""
        if self.stats is not None:
            now = self.stats.tok_s if self.phase == "replying" else None
            return replace(self.stats, tok_s=self.stats.mean_tok_s if now is None else now)
        if self.model is None or self.begun or not self.model.context:
            return None
        return Stats(context_limit=self.model.context)


def host_of(source: str) -> str:
    """The computer that a remote model answers on, "" for a local one."""
    return parse_source(source).host if source.startswith(PREFIX) else ""


def name_of(source: str) -> str:
    """The short name of a model folder, a Hub id or a remote model."""
    if source.startswith(PREFIX):
        return parse_source(source).model or host_of(source)
    return GUIDE if source == str(builtin_model()) else Path(source).name or source
