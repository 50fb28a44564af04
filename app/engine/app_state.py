"""The state that views need at any time, as one frozen record: model, phase and latest figures."""

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
"""Resting: the model was unloaded to free its memory and comes back with the next question.

Calling: a tool call of the reply waits for the user or runs.
"""


@dataclass(frozen=True)
class State:
    """State of the session as shown by the views. `model` is None until one is loaded."""

    phase: Phase = "empty"
    source: str = ""
    model: Loaded | None = None
    loading: Loading | None = None
    candidate: str = ""
    """The source of a model that is checked while the present one replies, "" = none."""
    prefill: Prefill | None = None
    stats: Stats | None = None
    begun: bool = False
    """Whether the conversation has turns already: its use of the context is known only with the next reply."""
    asked: bool = False
    """Whether a question waits for the model that is being loaded."""
    shown: str = ""
    """The id of the conversation in the window."""
    answered: str = ""
    """The id of the conversation with the last question."""
    waiting: tuple[str, ...] = ()
    """The ids of conversations with a question that waits for the reply in another one."""
    options: LoadOptions = field(default_factory=LoadOptions)
    """The options of the load, with memory limits changed since then."""

    @property
    def busy(self) -> bool:
        """Whether a reply runs or is awaited."""
        return self.asked or self.phase in ("reading", "replying", "calling")

    @property
    def occupied(self) -> bool:
        """Whether a question has to wait: for a reply, or until it is known which model answers it."""
        return self.busy or bool(self.candidate)

    @property
    def elsewhere(self) -> bool:
        """Whether the reply that runs or is awaited belongs to a conversation that is not shown."""
        return self.busy and self.answered != self.shown

    @property
    def busy_here(self) -> bool:
        """Whether a reply runs or is awaited in the conversation shown."""
        return self.busy_in(self.shown)

    def busy_in(self, conversation: str) -> bool:
        """Whether a reply runs or is awaited in a conversation."""
        return conversation in self.waiting or (self.busy and self.answered == conversation)

    @property
    def figures(self) -> Stats | None:
        """The figures to show, None if unknown.

        The speed is the current one during a reply, else the mean of the last reply. Before the first reply only the
        context is known.
        """
        if self.stats is not None:
            now = self.stats.tok_s if self.phase == "replying" else None
            return replace(self.stats, tok_s=self.stats.mean_tok_s if now is None else now)
        if self.model is None or self.begun or not self.model.context:
            return None
        return Stats(context_limit=self.model.context)


def host_of(source: str) -> str:
    """Return the host of a remote model, "" for a local one."""
    return parse_source(source).host if source.startswith(PREFIX) else ""


def name_of(source: str) -> str:
    """Return the short name of a model folder, a Hub id or a remote model."""
    if source.startswith(PREFIX):
        return parse_source(source).model or host_of(source)
    return GUIDE if source == str(builtin_model()) else Path(source).name or source
