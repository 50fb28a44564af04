"""An engine with scripted replies, driven through the production worker and its thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from core.events import (
    Checked,
    Counted,
    Event,
    Finished,
    Loaded,
    Loading,
    LoadOptions,
    Piece,
    Prefill,
    Replanned,
    Request,
    Stats,
    Stop,
)

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from app.application import Application

MODEL = Loaded("Llama-3.2-1B-Instruct", "llama", "int8", 8192, 1_240_000_000, 1_300_000_000, 1.2)
END = Stats(31, 0, 412, 0.62, 210.0, 23.4, 23.4, 443, 8192, seed=7)


class ScriptedEngine:
    """Replies with `replies` in turn, repeating the last one.

    `gate`: events wait until it is set; it is cleared before event `pause_at`, once. Wait until the engine is `paused`
    before the gate is opened again: its thread may be late.
    """

    def __init__(self, *replies: Sequence[Event], load: Sequence[Event] | None = None) -> None:
        self.replies: list[Sequence[Event]] = list(replies) or [answer("Hello.")]
        self.load_events: Sequence[Event] = list(load) if load is not None else [Loading("weights", 0.5), MODEL]
        self.requests: list[Request] = []
        self.sources: list[str] = []
        self.check_events: Sequence[Event] = [Loading("read", 0.02), Checked()]
        self.checked: list[str] = []
        self.check_gate = threading.Event()
        self.check_gate.set()
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.pause_at: int | None = None
        self.closed = False
        self.limits: list[tuple[int | None, int | None]] = []
        self.replanned: Event = Replanned("As you wished.")

    @property
    def paused(self) -> bool:
        """Whether events wait."""
        return not self.gate.is_set()

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        self.sources.append(source)
        yield from self._play(self.load_events, stop)

    def check(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        self.checked.append(source)
        while not self.check_gate.wait(0.005) and not stop():
            pass
        yield from self.check_events

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        self.requests.append(request)
        events = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        yield from self._play(events, stop)

    def count(self, request: Request) -> Iterator[Event]:
        yield Counted(sum(len(message.content.split()) for message in request.messages))

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        self.limits.append((vram, ram))
        yield self.replanned

    def close(self) -> None:
        self.closed = True

    def _play(self, events: Sequence[Event], stop: Stop) -> Iterator[Event]:
        self.threads.add(threading.get_ident())
        for at, event in enumerate(events):
            if at == self.pause_at:
                self.pause_at = None
                self.gate.clear()
            while not self.gate.wait(0.005) and not stop():
                pass
            if stop():
                yield Finished("stopped", Stats(new_tokens=1))
                return
            yield event


def answer(text: str, reasoning: str = "", size: int = 4, stats: Stats = END) -> list[Event]:
    """Return a whole reply, in pieces of `size` characters."""
    events: list[Event] = [Prefill(31, 31, 0)]
    events += [Piece(reasoning[at : at + size], "reasoning") for at in range(0, len(reasoning), size)]
    events += [Piece(text[at : at + size]) for at in range(0, len(text), size)]
    return [*events, stats, Finished("stop", stats)]


def ask(qtbot: QtBot, app: Application, text: str) -> None:
    """Ask the application's engine a question and wait for the answer."""
    app.window.composer.submitted.emit(text)
    qtbot.waitUntil(lambda: not app.session.state.busy)
