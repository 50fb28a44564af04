"""Measures long conversations in the window: opening 2,000 messages, and streaming 2,000 lines.

`python -m tests.bench.reading [--messages 2000] [--lines 2000] [--tokens-s 100]` prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil
from PySide6.QtCore import QEventLoop
from PySide6.QtWidgets import QApplication, QWidget

from app.application import Application, StartOptions
from app.conversations.conversation import Conversation, Turn
from app.settings.theme import Theme
from app.views.chat.body import Body
from core.events import Checked, Event, Finished, Loaded, LoadOptions, Piece, Prefill, Request, Stats, Stop
from tests.app.bad_markdown import HOSTILE
from tests.app.scripted_engine import MODEL
from tests.app.waiting import until
from tests.bench.ticks import Ticks

MESSAGE = "A **reply** of some length, with `code`.\n\n```python\nprint('x')\n```\n\n- one\n- two\n" * 3
LINES = ("    value = compute(1, 'two')  # and a comment\n", "A line of **prose** with `code` in it.\n")
PER_BLOCK = 40
WIDTH = 760
OPENINGS = 5
STATS_EVERY = 25
"""Tokens between figures: the engine sends them four times a second."""


def reply(lines: int) -> Iterator[str]:
    """Yield a reply of `lines` lines, half a line at a time, alternating blocks of code and prose."""
    for at in range(lines):
        block, inside = divmod(at, PER_BLOCK)
        is_code = block % 2 == 0
        fence = "```python\n" if is_code else "\n"
        line = (fence if inside == 0 else "") + LINES[not is_code]
        line += "```\n\n" if is_code and inside == PER_BLOCK - 1 else ""
        yield from (line[: len(line) // 2], line[len(line) // 2 :])


class PacedEngine:
    """Streams a long reply at a steady pace."""

    def __init__(self, lines: int, tokens_s: float) -> None:
        self._lines, self._pause = lines, 1 / tokens_s

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        loaded: Loaded = MODEL
        yield loaded

    def check(self, source: str, options: LoadOptions) -> Iterator[Event]:
        yield Checked()

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        yield Prefill(1, 1, 0)
        due, written = time.perf_counter(), 0
        for piece in reply(self._lines):
            due += self._pause
            time.sleep(max(0.0, due - time.perf_counter()))
            written += 1
            yield Piece(piece)
            if written % STATS_EVERY:
                continue
            yield Stats(31, 0, written, 0.6, 200.0, 1 / self._pause, 1 / self._pause, 31 + written, 8192)
        yield Finished("stop", Stats(new_tokens=written))

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        yield from ()

    def close(self) -> None:
        pass


def stored(app: Application, messages: int) -> str:
    """Store a conversation on disk and return its id."""
    store = app.library._store
    assert store is not None
    conversation, parent = Conversation(title="Long"), None
    store.put(conversation)
    for at in range(messages):
        user = at % 2 == 0
        text = f"Question {at}?" if user else MESSAGE
        turn = Turn("user" if user else "assistant", text, end="" if user else "stop", parent=parent)
        store.add(conversation.id, conversation.add(turn))
        parent = turn.id
    store.flush()
    return conversation.id


def open_ms(app: Application, id: str) -> list[tuple[float, float]]:
    """Measure, several times, from opening a conversation until it is painted: (wall, processor) milliseconds."""
    took = []
    for _ in range(OPENINGS):
        app.commands.act("new_chat")
        QApplication.processEvents()
        began, worked = time.perf_counter(), time.thread_time()
        app.library.open(id, "")
        app.window.repaint()
        QApplication.processEvents()
        took.append(((time.perf_counter() - began) * 1e3, (time.thread_time() - worked) * 1e3))
        assert app.chat.rowCount() > 100
    return took


def streaming(app: Application) -> dict[str, Any]:
    """Measure tick delays and the window's processor time during a reply."""
    process, marks = psutil.Process(), []
    app.session.submit("Write")
    until(lambda: app.session.state.phase == "replying", 600, 0.0005)
    before, ticks = process.memory_info().rss, Ticks()
    while app.session.state.busy:
        # Wait instead of polling, because only the window's own work counts.
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
        stats = app.session.state.stats
        marks.append((stats.new_tokens if stats else 0, time.thread_time()))
    first, last = cost(marks, 200), cost(marks, marks[-1][0] - 200)
    return {
        "tick": ticks.summary(),
        "window_ms_per_token_first": round(first, 3),
        "window_ms_per_token_last": round(last, 3),
        "growth": round(last / first, 2),
        "memory_grown_mb": round((process.memory_info().rss - before) / 1e6, 1),
    }


def hostile() -> dict[str, float]:
    """Return the window's longest step with each hostile reply, in milliseconds of processor time."""
    port = QWidget()
    port.resize(WIDTH, 780)
    port.show()
    return {name: round(longest_step(port, text) * 1e3, 1) for name, text in HOSTILE.items()}


def longest_step(port: QWidget, text: str) -> float:
    body = Body(Theme("light"), port)
    began = time.thread_time()
    body.feed(text, True)
    longest = time.thread_time() - began
    while not body.settled:
        began = time.thread_time()
        QApplication.processEvents()
        body.setGeometry(0, 0, WIDTH, body.measure(WIDTH))
        longest = max(longest, time.thread_time() - began)
    body.hide()
    body.deleteLater()
    return longest


def cost(marks: list[tuple[int, float]], start: int) -> float:
    """Return milliseconds of the window's thread per token, over the hundred tokens from `start`."""
    inside = [(tokens, at) for tokens, at in marks if start <= tokens <= start + 100]
    return (inside[-1][1] - inside[0][1]) * 1e3 / max(1, inside[-1][0] - inside[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--tokens-s", type=float, default=100)
    args = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = home
        qt = QApplication([])
        app = Application(StartOptions("some/model"), lambda: PacedEngine(args.lines, args.tokens_s))
        app.window.show()
        until(lambda: app.session.state.phase == "ready", 600, 0.0005)
        opened = open_ms(app, stored(app, args.messages))
        wall, own = (round(statistics.median(each), 1) for each in zip(*opened, strict=True))
        result = {"open_ms": wall, "open_own_ms": own, **streaming(app)}
        print(json.dumps({**result, "hostile_longest_step_ms": hostile()}))
        app.window.close()
        app.close()
        del qt


if __name__ == "__main__":
    main()
