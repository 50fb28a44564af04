"""Notable states of the window, each played through the real worker."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import sin
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QMenu, QScrollArea, QSlider, QWidget

from app.application import Application, StartOptions
from app.engine.server_state import ServerState
from app.i18n import formatting
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from app.settings import settings
from app.settings.settings import Settings
from app.settings.theme import Mode
from app.system.paths import places
from app.views.chat.chip_words import words_while_reading
from app.views.chat.document_dialog import PasswordDialog
from app.views.chat.message import MessageView, ReplyMessage
from app.views.settings.settings_dialog import SettingsDialog
from core.errors import NotEnoughMemory
from core.events import Event, Failed, Loaded, Loading, Piece, Stats, Unloaded
from core.planning.planner import place
from core.server.activity import Entry, Live, Snapshot
from core.spec import Budget, Prediction
from core.units import GIB
from tests.app.find import find
from tests.app.scripted_engine import MODEL, ScriptedEngine, answer
from tests.app.waiting import delete, idle, until
from tests.core.documents.made import pdf, pdf_with_password
from tests.core.machines import DESKTOP, model

REPLY = """Decoding one token reads **every weight once**, so it is bound by *bandwidth*, not by arithmetic. \
For a model of 7 billion parameters in `int8` that is about 7 GB per token.

## What follows

1. Rows that stay in graphics memory are read at its full rate.
2. The others are split:
   - the CPU computes its rows in place,
   - the rest travels over the link and is computed by the GPU.
3. Both finish at the same time when $\\alpha = \\frac{V_{gpu} V_{com}}{V_{cpu} V_{gpu} + V_{com}}$.

```python
def share(v_cpu: float, v_com: float, v_gpu: float) -> float:
    \"\"\"The share of rows that the GPU computes.\"\"\"
    return v_gpu * v_com / (v_cpu * v_gpu + v_cpu * v_com + v_com * v_gpu)  # balanced


print(f"{share(45, 12, 250):.2f}")
```

| Device | Rate | Rows |
|:--|--:|--:|
| Graphics memory | 250 GB/s | 6,144 |
| Link | 12 GB/s | 2,048 |
| CPU | 45 GB/s | 8,192 |

> A split that is balanced leaves no device idle.

More in [the paper](https://arxiv.org/abs/2403.01164) and at https://example.org/docs.
"""
THOUGHT = (
    "The question is about bandwidth. I should name the formula and show it in code.\n\nA table of rates will help."
)


NOON = 1_795_000_000.0
SERVER = ServerState(
    "on",
    "http://192.168.1.20:9931/v1",
    wide=True,
    key="hg-4dF0x2",
    activity=Snapshot(
        (
            Live(1, "127.0.0.1 claude-cli/2.1", "/v1/messages", NOON, "replying", 210, 23.4),
            Live(2, "192.168.1.31 OpenAI/Python", "/v1/chat/completions", NOON, "waiting"),
        ),
        (("192.168.1.31 OpenAI/Python", NOON), ("127.0.0.1 claude-cli/2.1", NOON)),
        tuple(
            Entry(NOON + at, "127.0.0.1 claude-cli/2.1", path, status, 0.2 * at, 30 * at)
            for at, (path, status) in enumerate(
                [("/v1/models", 200), ("/v1/messages/count_tokens", 200), ("/v1/messages", 200), ("/v1/messages", 499)]
            )
        ),
    ),
)


@cache
def planned() -> Loaded:
    """Return an 8-billion-parameter model, planned for a card of 8 GB."""
    spec = model("llama-3.1-8b")
    card = replace(DESKTOP.gpus[0], name="RTX 4060")
    machine = replace(DESKTOP, gpus=(card,))
    plan = place(spec, machine, Budget(context=8192))
    return replace(
        MODEL,
        name="Llama-3.1-8B-Instruct",
        format=plan.format,
        context=plan.context,
        plan=plan,
        spec=spec,
        hardware=machine,
    )


SAMPLE = Sample(
    0.0,
    cpu_percent=62.0,
    own_cpu_percent=55.0,
    cpu_temperature_c=61.0,
    ram_total=32 * GIB,
    ram_available=19 * GIB,
    own_ram=9 * GIB,
    disk_read_bytes_s=0.0,
    gpus=(
        GpuSample(
            0, "RTX 4060", busy_percent=71.0, vram_total=8 * GIB, vram_used=7 * GIB, vram_own=6 * GIB, power_w=92.0,
            power_limit_w=115.0, temperature_c=64.0, link_in_bytes_s=9.8e9, link_out_bytes_s=0.2e9,
        ),
    ),
)  # fmt: skip


class Stage:
    """The whole application with a scripted engine."""

    def __init__(
        self, mode: Mode = "light", engine: ScriptedEngine | None = None, percent: int = 100, language: str = "en"
    ) -> None:
        self.home = tempfile.TemporaryDirectory()
        os.environ["HETEGEN_HOME"] = self.home.name
        settings.write(places().settings, Settings(theme=mode, font_percent=percent, language=language))
        self.engine = engine or ScriptedEngine(answer(REPLY, THOUGHT), load=[Loading("weights", 0.5), planned()])
        self.app = Application(StartOptions("meta-llama/Llama-3.1-8B-Instruct"), lambda: self.engine)
        self.app.window.resize(1180, 780)

    @property
    def subject(self) -> QWidget:
        """The widget to show: the open dialog or menu, else the window."""
        opened = [*self.app.window.findChildren(QDialog), *self.app.window.findChildren(QMenu)]
        # A form covers the page that it belongs to.
        return next((widget for widget in reversed(opened) if widget.isVisible()), self.app.window)

    def show(self) -> None:
        self.app.window.show()
        until(lambda: self.app.session.state.phase == "ready")

    def ask(self, text: str) -> None:
        self.app.window.composer.submitted.emit(text)
        until(lambda: not self.app.session.state.busy)

    def settle(self, seconds: float = 0.3) -> None:
        idle(seconds)
        until(lambda: all(view.settled for view in self.app.window.transcript.findChildren(MessageView)))
        self.app.telemetry.stop()
        self.app.telemetry.sampled.emit(SAMPLE)
        QApplication.processEvents()

    def close(self) -> None:
        self.app.window.close()
        self.app.close()
        delete(self.app.window)
        self.home.cleanup()


def empty(stage: Stage) -> None:
    stage.show()


def first_start(stage: Stage) -> None:
    stage.show()
    stage.app.window.empty.set_guide(True)
    speed = Prediction(11.9, 14.6, 19.1)
    stage.app.window.empty.advise("Qwen/Qwen3-8B", formatting.advice("Qwen3-8B", 16_400_000_000, speed))


def loading(stage: Stage) -> None:
    stage.engine.load_events = [Loading("weights", 0.42), Loading("weights", 0.5), MODEL]
    stage.engine.gate.clear()
    stage.app.window.show()
    stage.settle(0.1)
    stage.app.session.model.change(loading=Loading("weights", 0.42))


def reply(stage: Stage) -> None:
    stage.show()
    stage.ask("Why does a split between CPU and GPU help, and how is the share found?")


def deleted(stage: Stage) -> None:
    """The offer to undo, of a conversation with a long title."""
    reply(stage)
    stage.app.sidebar.undo.offer("", "Why does a split between CPU and GPU help?")


def top_of_reply(stage: Stage) -> None:
    reply(stage)
    stage.settle(0.1)
    stage.app.window.transcript.show_turn(stage.app.chat.turn(0).id)
    view = stage.app.window.transcript.view_of(stage.app.chat.turn(0).id)
    assert view is not None
    view.row.set_lively(True)


def failure(stage: Stage) -> None:
    """A model that does not fit; the one before stays."""
    reply(stage)
    load(stage, Failed(FULL))


def given_up(stage: Stage) -> None:
    """A model that breaks while it is loaded; the one before is offered again."""
    reply(stage)
    load(stage, Unloaded(), Failed(FULL))


def load(stage: Stage, *events: Event) -> None:
    stage.engine.load_events = events
    stage.app.session.load("/models/Qwen3-32B", StartOptions().options)
    until(lambda: stage.app.session.state.phase != "loading")


FULL = NotEnoughMemory(
    "This computer's memory is full.", "", "Close other programs, or choose a shorter context or a smaller model."
)


def narrow(stage: Stage) -> None:
    stage.app.window.resize(720, 480)
    reply(stage)


def large_type(stage: Stage) -> None:
    stage.app.theme.choose(stage.app.preferences.mode, 160)
    reply(stage)


def editing(stage: Stage) -> None:
    stage.show()
    stage.engine.replies = [answer("Short."), answer("Short, again.")]
    stage.ask("First question, with\na second line.")
    stage.app.session.regenerate(stage.app.chat.turn(1).id)
    until(lambda: not stage.app.session.state.busy)
    stage.settle(0.1)
    view = stage.app.window.transcript.view_of(stage.app.chat.turn(0).id)
    assert view is not None
    view.begin_edit()
    stage.app.window.composer.set_text("A draft that is\nlonger than\none line")


def streaming(stage: Stage) -> None:
    stage.show()
    stage.app.session.submit("How do I find duplicate files?")
    stage.settle(0.1)
    until(lambda: not stage.app.session.state.busy)
    for title in ("Plan a trip to the sea", "Rewrite a letter", "What is a KV cache?"):
        stage.app.commands.act("new_chat")
        stage.engine.replies = [answer("Short.")]
        stage.ask(title)
    speeds = (9.2, 10.4, 11.1, 10.8, 11.3, 11.0, 10.9, 11.2)
    head = [Piece(REPLY[:700]), *(Stats(31, 0, 40, 0.62, 310.0, speed, speed, 443, 8192) for speed in speeds)]
    stage.engine.replies = [[*head, Piece("Half a sentence of"), *answer("")]]
    stage.engine.pause_at = len(head) + 1
    stage.app.session.submit("And why does a split help?")
    until(lambda: stage.app.session.state.phase == "replying")
    stage.settle(0.4)


def elsewhere(stage: Stage) -> None:
    """A question that waits for the reply in another conversation."""
    streaming(stage)
    stage.app.commands.act("new_chat")
    stage.app.window.composer.set_text("Something quite different")
    QTest.keyClick(stage.app.window.composer.edit, Qt.Key.Key_Return)


def unanswered(stage: Stage) -> None:
    """A question that was stopped while it waited for the model."""
    loading(stage)
    stage.app.session.submit("Why does a split between CPU and GPU help, and how is the share found?")
    stage.app.session.stop()


def menu(stage: Stage) -> None:
    stage.show()
    stage.app.window.top.menu_pressed.emit()


def what_if(stage: Stage) -> None:
    reply(stage)
    find(stage.app.live.what_if, QSlider, stage.app.live.what_if.tr("Context")).setValue(10)
    stage.settle(0.3)
    area = stage.app.live.findChild(QScrollArea)
    assert area is not None
    area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())


def shortcuts(stage: Stage) -> None:
    stage.show()
    stage.app.commands.act("shortcuts")


def about(stage: Stage) -> None:
    stage.show()
    stage.app.commands.act("about")


def attached(stage: Stage) -> None:
    """Files with a question that was asked, and others with the next one."""
    stage.show()
    folder = Path(stage.home.name)
    pages = [f"Page {number} of the report on memory bandwidth." for number in range(1, 13)]
    files = [pdf(folder / "Report on memory bandwidth.pdf", pages), folder / "measurements.csv"]
    files[1].write_text("device,rate\n" + "CPU,45\n" * 40)
    attach(stage, files)
    stage.engine.replies = [answer("The report measures a rate of **45 GB/s** on page 3.")]
    stage.ask("What rate does the report measure?")
    long = folder / "A very long name of a file that nobody would ever want to read in full, second version.md"
    long.write_text("# Notes\n" + "Some words. " * 900)
    attach(stage, [*files, long])


def attach(stage: Stage, files: list[Path]) -> None:
    stage.app.attachments.add(files)
    until(lambda: all(each.counted for each in stage.app.attachments.pending))


def in_parts(stage: Stage) -> None:
    """A report that does not fit, read in parts that are shown under the reply."""
    stage.show()
    lines = "The survey of harbour {} counted {} cranes on a windy day and wrote down their loads in tonnes. "
    pages = [" ".join(lines.format(n * 7 + k, (n * k) % 90) for k in range(9)) for n in range(300)]
    attach(stage, [pdf(Path(stage.home.name) / "Harbour survey 2026.pdf", pages)])
    files = [each.document for each in stage.app.attachments.pending]
    until(lambda: all(each is not None and stage.app.long.is_ready(each) for each in files))
    stage.engine.replies = [answer("Harbour 703 has **12 cranes**.")]
    stage.ask("How many cranes did the survey of harbour 703 count?")
    view = stage.app.window.transcript.view_of(stage.app.chat.turn(1).id)
    assert isinstance(view, ReplyMessage)
    view.quotes[0].button.click()
    stage.settle(0.1)
    stage.app.window.transcript.show_turn(stage.app.chat.turn(0).id)


def in_parts_narrow(stage: Stage) -> None:
    stage.app.window.resize(720, 480)
    in_parts(stage)


def password(stage: Stage) -> None:
    """A locked file asks for its password."""
    stage.show()
    stage.app.attachments.add([pdf_with_password(Path(stage.home.name) / "Contract.pdf", "text", "secret")])
    until(lambda: bool(stage.app.window.findChildren(PasswordDialog)))


def reading(stage: Stage) -> None:
    """A long file while it is read."""
    stage.show()
    notes = Path(stage.home.name) / "A long book.pdf"
    notes.write_text("words")
    attach(stage, [notes])
    stage.app.window.chips.show_chips([words_while_reading(notes.name, 120, 340)])


def document(stage: Stage) -> None:
    attached(stage)
    stage.app.attachments.open(0)


def card(stage: Stage) -> None:
    stage.show()
    stage.app.commands.act("gpu")


def server(stage: Stage) -> None:
    stage.show()
    stage.app.commands.act("server")
    stage.app.server.changed.emit(SERVER)


def this_conversation(stage: Stage) -> None:
    stage.show()
    stage.app.commands.act("conversation")


def settings_page(words: str) -> Callable[[Stage], None]:
    def scene(stage: Stage) -> None:
        stage.show()
        stage.app.commands.act("settings")
        dialog = stage.subject
        assert isinstance(dialog, SettingsDialog)
        dialog.pages.setCurrentRow(SETTINGS_PAGES.index(words))  # page names are in the window's language

    return scene


SETTINGS_PAGES = (
    "Appearance",
    "Chat",
    "Sampling",
    "Model",
    "Models and network",
    "Data folders",
    "What goes online",
    "Log",
)


def front(stage: Stage) -> None:
    """The picture in the README: conversations, a reply being written, a minute of speeds."""
    stage.app.window.resize(1280, 880)
    stage.show()
    for title in ("Plan a trip to the sea", "Rewrite a letter to the landlord", "What is a KV cache?"):
        stage.engine.replies = [answer("Short.")]
        stage.ask(title)
        stage.app.commands.act("new_chat")
    head = [Piece(REPLY[:870]), Stats(31, 0, 212, 0.62, 310.0, 13.8, 13.6, 443, 8192)]
    stage.engine.replies = [[*head, Piece(""), *answer("")]]
    stage.engine.pause_at = len(head)
    stage.app.session.submit("Why does a split between CPU and GPU help, and how is the share found?")
    until(lambda: stage.app.session.state.stats is not None)
    now, line = time.monotonic(), stage.app.live.line
    line._points.clear()
    line._points.extend((now - 46 + at / 2, 13.4 + sin(at / 3) * 0.5 + sin(at * 1.7) * 0.25) for at in range(92))
    stage.settle(0.4)


SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene
    for scene in (
        empty, first_start, loading, reply, deleted, top_of_reply, failure, given_up, narrow, large_type, editing,
        streaming, elsewhere, unanswered, menu, what_if, shortcuts, about, card, attached, document, in_parts,
        in_parts_narrow, password, reading, server, this_conversation, front,
    )
} | {f"settings_{page.lower().replace(' ', '_')}": settings_page(page) for page in SETTINGS_PAGES}  # fmt: skip
IN_GERMAN = (
    "server",
    "empty",
    "in_parts",
    "reply",
    "deleted",
    "failure",
    "given_up",
    "elsewhere",
    "loading",
    "menu",
    "what_if",
    "about",
    "settings_appearance",
    "settings_sampling",
    "settings_model",
)
