"""What users rely on: conversations over restarts, settings that take effect, a tour by keyboard alone."""

import json
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QTimer, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QFileDialog, QLabel, QMessageBox, QPushButton, QSlider
from pytestqt.qtbot import QtBot

from app.application import Application, StartOptions
from app.conversations.imports.reader import Imported, read_json
from app.conversations.store import Entry, Store
from app.system import window_state
from app.system.paths import places
from app.system.sleep import SleepWatch
from app.views.controls.controls import IconButton
from app.views.conversations.conversation_dialog import ConversationDialog
from app.views.frame.shortcuts_page import ShortcutsPage
from app.views.settings.settings_dialog import SettingsDialog
from core.errors import ModelUnreadable
from core.events import Failed, LoadOptions, Piece, Replanned
from core.files import write_whole
from core.planning.planner import place
from core.spec import Budget
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.screenshots import SAMPLE, planned
from tests.app.scripted_engine import MODEL, ScriptedEngine, answer, ask


def entries(app: Application) -> list[str]:
    heard: list[list[str]] = []
    app.library.listed.connect(lambda found: heard.append([entry.title for entry in found]))
    app.library.refresh()
    return heard[-1]


def test_conversations_are_there_after_a_restart(qtbot: QtBot, start: Start) -> None:
    first = start(ScriptedEngine(answer("One."), answer("Two."), answer("Three.")))
    ask(qtbot, first, "First question")
    first.session.regenerate(first.chat.turn(1).id)
    qtbot.waitUntil(lambda: not first.session.state.busy)
    id = first.chat.conversation.id
    first.commands.act("new_chat")
    ask(qtbot, first, "Other question")
    first.window.close()

    second = start(ScriptedEngine())
    assert entries(second) == ["Other question", "First question"]
    second.library.open(id, "")
    assert [turn.content for turn in second.chat.conversation.path()] == ["First question", "Two."]
    assert second.chat.conversation.versions(second.chat.turn(1).id) == (2, 2)
    assert second.chat.turn(1).receipt["new_tokens"] == 412


def test_a_reply_that_runs_at_the_end_is_kept(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine([Piece("Half of it"), *answer("more")])
    engine.pause_at = 3
    first = start(engine)
    first.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: first.session.state.phase == "replying")
    id = first.chat.conversation.id
    first.window.close()
    second = start(ScriptedEngine())
    second.library.open(id, "")
    turn = second.chat.turn(1)
    assert turn.content.startswith("Half of it")
    assert turn.end == "stopped"


def test_a_window_that_is_closed_as_soon_as_it_is_shown_starts_nothing(qtbot: QtBot) -> None:
    engine, after = ScriptedEngine(), list[bool]()
    app = Application(StartOptions("some/model"), lambda: engine)
    app.window.shown.connect(app.close)
    app.window.shown.connect(lambda: QTimer.singleShot(0, lambda: after.append(True)))
    app.window.show()
    qtbot.waitUntil(lambda: bool(after))
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}
    assert not engine.sources
    app.window.close()
    app.window.deleteLater()


def test_search_opens_the_conversation_at_the_turn(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("The word is marmalade.")))
    ask(qtbot, app, "Tell me")
    app.commands.act("new_chat")
    with qtbot.waitSignal(app.library.found) as found:
        app.library.search("marmal")
    hit = found.args[0][0]
    app.library.open(hit.entry.id, hit.turn or "")
    assert app.chat.turn(1).content == "The word is marmalade."


def test_a_deleted_conversation_comes_back(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    ask(qtbot, app, "Keep me")
    id = app.chat.conversation.id
    app.library.delete(id)
    assert entries(app) == []
    assert app.chat.rowCount() == 0
    app.library.undelete(id)
    assert entries(app) == ["Keep me"]


def test_export_and_import_go_round(qtbot: QtBot, start: Start, tmp_path: Path) -> None:
    app = start(ScriptedEngine(answer("Out and in.")))
    ask(qtbot, app, "Round trip")
    app.library.write(app.chat.conversation.id, "markdown", tmp_path / "one.md")
    assert "Out and in." in (tmp_path / "one.md").read_text("utf-8")
    app.library.write("", "json", tmp_path / "all.json")
    app.library.read(tmp_path / "all.json")
    qtbot.waitUntil(lambda: app.window.notices.notices[-1].title == "Imported")
    app.library.read(tmp_path / "one.md")
    qtbot.waitUntil(lambda: app.window.notices.notices[-1].tone == "error")
    assert "Importing" not in [notice.title for notice in app.window.notices.notices]
    app.library.write("", "json", tmp_path / "no such folder" / "all.json")
    assert app.window.notices.notices[-1].title == "The file could not be written"


def test_the_window_goes_on_while_conversations_are_exported(
    qtbot: QtBot, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, path = threading.Event(), tmp_path / "all.json"

    def late(path: Path, text: str) -> None:
        gate.wait(60)
        write_whole(path, text)

    monkeypatch.setattr("app.conversations.library.write_whole", late)
    app = start(ScriptedEngine(answer("Here."), answer("Still here.")))
    ask(qtbot, app, "Keep this")
    app.library.export("", "json", path)
    ask(qtbot, app, "Are you there?")
    assert not path.exists()
    gate.set()
    qtbot.waitUntil(lambda: "Exported" in [notice.title for notice in app.window.notices.notices])
    assert "Keep this" in path.read_text("utf-8")
    app.library.export("", "json", tmp_path / "no such folder" / "all.json")
    qtbot.waitUntil(lambda: app.window.notices.notices[-1].title == "The file could not be written")


def test_an_export_that_was_begun_is_written_when_the_window_closes(qtbot: QtBot, start: Start, tmp_path: Path) -> None:
    app = start(ScriptedEngine(answer("Here.")))
    ask(qtbot, app, "Keep this")
    for name in ("one.json", "two.json", "three.json"):
        app.library.export("", "json", tmp_path / name)
    app.library.close()
    for name in ("one.json", "two.json", "three.json"):
        assert "Keep this" in (tmp_path / name).read_text("utf-8")


def test_the_window_goes_on_while_a_file_is_imported(
    qtbot: QtBot, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def late(path: Path) -> Imported:
        gate.wait(60)
        return read_json(path)

    monkeypatch.setattr("app.conversations.importing.read_json", late)
    app = start(ScriptedEngine(answer("Here.")))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    titles = [f"Talk {number}" for number in range(3)]
    (tmp_path / "some.json").write_text(json.dumps([{"title": each, "messages": said} for each in titles]), "utf-8")
    app.library.read(tmp_path / "some.json")
    assert app.window.notices.notices[-1].sentence == "some.json is being read."
    ask(qtbot, app, "Are you there?")
    assert entries(app) == ["Are you there?"]
    gate.set()
    qtbot.waitUntil(lambda: app.window.notices.notices[-1].sentence == "3 conversations.")
    assert {*entries(app)} == {*titles, "Are you there?"}


def test_what_was_read_of_an_import_is_stored_when_the_window_closes(
    qtbot: QtBot, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.conversations.importing.SLICE_S", 0.0)
    app = start(ScriptedEngine())
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    talks = [{"title": f"Talk {number}", "messages": said} for number in range(50)]
    (tmp_path / "some.json").write_text(json.dumps(talks), "utf-8")
    app.library.read(tmp_path / "some.json")
    qtbot.waitUntil(lambda: bool(entries(app)))
    app.library.close()
    store = Store(places().conversations)
    assert len(store.entries()) == 50
    store.close()


def test_what_of_an_import_could_not_be_read_is_named(qtbot: QtBot, start: Start, tmp_path: Path) -> None:
    app = start(ScriptedEngine())
    good = {
        "title": "Good",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}],
    }
    (tmp_path / "some.json").write_text(json.dumps([good, {"title": "Bad", "messages": [{"role": "user"}]}]), "utf-8")
    app.library.read(tmp_path / "some.json")
    qtbot.waitUntil(lambda: bool(app.window.notices.notices) and app.window.notices.notices[-1].title == "Imported")
    assert app.window.notices.notices[-1].sentence == "One conversation. Not readable: “Bad”."
    assert entries(app) == ["Good"]


def test_half_a_surrogate_pair_that_was_pasted_is_replaced(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    app.session.submit(f"smile {chr(0xD83D)}")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(0).content == "smile \ufffd"
    assert engine.requests[-1].messages[-1].content == "smile \ufffd"
    app.session.edit(app.chat.turn(0).id, chr(0xDE00))
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(0).content == "\ufffd"


def test_an_export_that_fails_leaves_the_one_before_as_it_was(qtbot: QtBot, start: Start, tmp_path: Path) -> None:
    app = start(ScriptedEngine(answer("word " * 20_000, size=5000)))
    ask(qtbot, app, "Much")
    folder = tmp_path / "exports"
    folder.mkdir()
    path = folder / "all.json"
    path.write_text("the one before", "utf-8")
    with files_of_at_most(1000):
        assert not app.library.write("", "json", path)
    assert app.window.notices.notices[-1].title == "The file could not be written"
    assert [each.name for each in folder.iterdir()] == ["all.json"]
    assert path.read_text("utf-8") == "the one before"
    assert app.library.write("", "json", path)
    assert "word word" in path.read_text("utf-8")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of this process's files: writing more fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limits for files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def test_imported_conversations_keep_their_times(qtbot: QtBot, start: Start, tmp_path: Path) -> None:
    app = start(ScriptedEngine())
    times = {"created": 1_700_000_000.0}, {"created": 1_700_000_100.0}
    turns = [
        {"id": 1, "parent": None, "role": "user", "content": "Long ago", **times[0]},
        {"id": 2, "parent": 1, "role": "assistant", "content": "Yes.", **times[1]},
    ]
    saved = {"format": "hetegen-conversations", "version": 1, "conversations": [{"title": "Old", "turns": turns}]}
    (tmp_path / "old.json").write_text(json.dumps(saved), "utf-8")
    app.library.read(tmp_path / "old.json")
    qtbot.waitUntil(lambda: entries(app) == ["Old"])
    heard: list[list[Entry]] = []
    app.library.listed.connect(heard.append)
    app.library.refresh()
    (entry,) = heard[-1]
    assert (entry.created, entry.updated) == (1_700_000_000.0, 1_700_000_100.0)


@pytest.fixture
def full(qtbot: QtBot, start: Start, disks: list[sqlite3.Connection]) -> Application:
    """A chat whose last turn found no room on the disk."""
    app = start(ScriptedEngine(answer("word " * 40_000, size=5000)))
    disks[-1].execute("PRAGMA max_page_count = 60")
    ask(qtbot, app, "Much")
    qtbot.waitUntil(lambda: app.library.unsaved)
    return app


def press(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Let a user answer the coming boxes with these buttons; returns those still to be pressed."""
    left = list(words)

    def pressed(box: QMessageBox) -> None:
        button = next(button for button in box.buttons() if button.text().replace("&", "") == left[0])
        left.pop(0)
        button.click()

    monkeypatch.setattr(QMessageBox, "exec", pressed)
    return left


def test_closing_over_unsaved_words_asks_first(
    qtbot: QtBot, full: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = press(monkeypatch, "Try again", "Cancel")
    assert not full.window.close()
    assert full.window.isVisible()
    assert not left
    qtbot.waitUntil(lambda: full.window.findChild(QMessageBox) is None)
    left = press(monkeypatch, "Quit anyway")
    assert full.window.close()
    assert not left


def test_unsaved_words_can_be_saved_elsewhere(
    full: Application, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = iter(["", str(tmp_path / "no such folder" / "a.json"), str(tmp_path / "all.json")])
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (next(names), ""))
    left = press(monkeypatch, *["Save elsewhere…"] * 3)
    assert full.window.close()
    assert not left
    assert "word word" in (tmp_path / "all.json").read_text("utf-8")


def test_with_room_again_nothing_is_asked(full: Application, disks: list[sqlite3.Connection]) -> None:
    disks[-1].execute("PRAGMA max_page_count = 1000000")
    assert full.window.close()


def test_a_database_that_cannot_be_opened_is_said_and_chat_goes_on(qtbot: QtBot, start: Start) -> None:
    where = places().conversations
    where.parent.mkdir(parents=True)
    where.mkdir()
    app = start(ScriptedEngine())
    qtbot.waitUntil(lambda: any(n.title == "Conversations are not kept" for n in app.window.notices.notices))
    ask(qtbot, app, "Still here?")
    assert app.chat.turn(1).content == "Hello."


def test_settings_take_effect_and_are_written(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    app.commands.act("settings")
    dialog = app.window.findChild(SettingsDialog)
    assert dialog is not None
    settings = app.preferences.settings
    dialog.changed.emit(replace(settings, theme="dark", enter_sends=False, system_prompt="Be brief."), "theme")
    assert app.theme.dark
    assert not app.window.composer.enter_sends
    assert not app.window.transcript.enter_sends
    assert json.loads(places().settings.read_text("utf-8"))["theme"] == "dark"
    app.commands.act("new_chat")
    assert app.chat.conversation.system == "Be brief."
    dialog.close()
    app.theme.choose("light", 100)


def test_a_receipt_has_the_sampling_that_the_reply_was_asked_with(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Here."))
    engine.pause_at = 2
    app = start(engine)
    app.library.describe("", "precise")
    app.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying" and engine.paused)
    app.library.describe("", "creative")
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).receipt["sampling"] == {"temperature": 0.2, "top_p": 0.9}


def test_invalid_stored_settings_are_said(qtbot: QtBot, start: Start) -> None:
    places().settings.parent.mkdir(parents=True)
    places().settings.write_text('{"font_percent": 9000}', "utf-8")
    app = start(ScriptedEngine())
    assert app.window.notices.notices[0].title == "A setting was not used"
    assert app.preferences.settings.font_percent == 100


def test_the_command_line_counts_before_the_settings(start: Start) -> None:
    places().settings.parent.mkdir(parents=True)
    places().settings.write_text('{"threads": 3, "context": 2048, "vram_limit_gib": 2, "draft": "self"}', "utf-8")
    options = start(ScriptedEngine(), StartOptions("m", LoadOptions(context=512))).preferences.options()
    assert (options.context, options.threads, options.vram, options.draft) == (512, 3, 2 * 2**30, "self")
    without = start(ScriptedEngine(), StartOptions("m", LoadOptions(draft="off")))
    assert without.preferences.options().draft == "off"


def test_a_draft_model_of_the_settings_is_asked_for(start: Start) -> None:
    places().settings.parent.mkdir(parents=True)
    places().settings.write_text('{"draft": "model", "draft_model": " /models/gemma-assistant "}', "utf-8")
    app = start(ScriptedEngine(), StartOptions("m"))
    assert app.preferences.options().draft == "/models/gemma-assistant"
    other = start(ScriptedEngine(), StartOptions("m", LoadOptions(draft="self")))
    assert other.preferences.options().draft == "self"


def test_the_last_model_and_folded_panes_are_remembered(start: Start) -> None:
    first = start(ScriptedEngine(), StartOptions("/models/mine"))
    first.window.resize(1200, 800)
    first.commands.act("live")
    first.window.close()
    engine = ScriptedEngine()
    second = start(engine, StartOptions())
    assert engine.sources == ["/models/mine"]
    second.window.resize(1200, 800)
    assert second.window.panes.shown("sidebar")
    assert not second.window.panes.shown("live")


def test_a_model_is_remembered_once_it_is_loaded_and_not_only_at_the_end(start: Start) -> None:
    start(ScriptedEngine(), StartOptions("/models/mine"))
    # Not closed, as after a crash.
    assert window_state.read(places().config / "window.json").source == "/models/mine"


def test_a_model_that_could_not_be_loaded_is_not_tried_at_the_next_start(qtbot: QtBot, start: Start) -> None:
    first = start(ScriptedEngine(), StartOptions("/models/mine"))
    engine = ScriptedEngine(load=[Failed(ModelUnreadable("broken holds no model."))])
    second = start(engine, StartOptions("/models/broken"), phase="empty")
    second.window.close()
    third = start(again := ScriptedEngine(), StartOptions())
    assert again.sources == ["/models/mine"]
    assert first is not third


def test_a_failed_load_is_no_longer_shown_when_another_model_is_loaded(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(load=[Failed(ModelUnreadable("broken holds no model."))])
    app = start(engine, phase="empty")
    app.commands.submit("Hello?")
    assert [notice.title for notice in app.window.notices.notices] == [
        "The model could not be read",
        "No model is loaded",
    ]
    engine.load_events = [MODEL]
    app.load("/models/mine")
    assert app.window.notices.notices == []
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")


def test_in_a_narrow_window_panes_lie_over_the_chat(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    app.window.resize(800, 600)
    QApplication.processEvents()
    assert not app.sidebar.isVisible()
    app.commands.act("sidebar")
    assert app.sidebar.isVisible()
    assert app.window.composer.width() == 800
    QTest.mouseClick(
        app.window.composer.parentWidget(),
        Qt.MouseButton.LeftButton,
        pos=app.window.composer.parentWidget().rect().center(),
    )
    assert not app.sidebar.isVisible()
    app.window.resize(1200, 700)
    QApplication.processEvents()
    assert app.sidebar.isVisible()


def test_the_live_view_shows_the_plan_and_answers_what_if(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(load=[planned()])
    app = start(engine)
    assert "streamed" in app.live.decode.words
    assert sum(share for _, share in app.window.top.strip.shares) == pytest.approx(1)
    wish = app.live.what_if.wish()
    with qtbot.waitSignal(app.observer.answered) as answered:
        app.live.wished.emit(replace(wish, format="int4"))
    assert answered.args[0].format == "int4"
    assert answered.args[0].decode_tok_s.likely > planned().plan.decode.likely  # type: ignore[union-attr]
    app.live.applied.emit(replace(wish, context=4096))
    qtbot.waitUntil(lambda: len(engine.sources) == 2)


def test_another_share_of_the_card_is_applied_without_loading(qtbot: QtBot, start: Start) -> None:
    model = planned()
    assert model.spec is not None
    assert model.hardware is not None
    less = model.hardware.gpus[0].vram_total // 4
    plan = place(model.spec, model.hardware, Budget(context=8192, vram=less))
    engine = ScriptedEngine(load=[model])
    engine.replanned = Replanned("Less than before.", plan)
    app = start(engine)
    before = app.live.decode.words
    find(app.live.what_if, QSlider, "Share of the graphics memory").setValue(
        find(app.live.what_if, QSlider, "Share of the graphics memory").maximum() // 4
    )
    qtbot.waitUntil(find(app.live.what_if, QPushButton, "Apply").isEnabled)
    assert "nothing is loaded again" in find(app.live.what_if, QLabel, "manner").text()
    find(app.live.what_if, QPushButton, "Apply").click()
    qtbot.waitUntil(lambda: app.live.decode.words != before)
    assert engine.limits == [(less, None)]
    assert len(engine.sources) == 1
    assert app.window.notices.notices[-1].sentence == "Less than before."


def test_a_limit_in_the_settings_holds_at_once(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(load=[planned()])
    app = start(engine)
    app.commands.act("settings")
    dialog = app.window.findChild(SettingsDialog)
    assert dialog is not None
    dialog.changed.emit(replace(app.preferences.settings, ram_limit_gib=8), "ram_limit_gib")
    dialog.close()
    qtbot.waitUntil(lambda: engine.limits == [(None, 8 * 2**30)])
    assert len(engine.sources) == 1


def test_after_sleep_a_lost_card_is_looked_for_again(qtbot: QtBot, start: Start) -> None:
    """Finding it again: tests/core/offload/test_hetero_linear.py, with the real engine and a simulated card."""
    model = planned()
    assert model.spec is not None
    assert model.hardware is not None
    lost = place(model.spec, replace(model.hardware, gpus=()), Budget(context=8192))
    said = [Piece("Half"), Replanned("The graphics card stopped answering.", lost), *answer("whole")]
    engine = ScriptedEngine(said, load=[model])
    engine.replanned = Replanned("It is back.", model.plan)
    app = start(engine)
    before = app.live.decode.words
    ask(qtbot, app, "Go")
    assert app.live.decode.words != before

    clock = iter((0.0, 5.0, 12.0, 8 * 3600.0))
    watch = SleepWatch(lambda: next(clock))
    watch.woke.connect(app.session.model.after_sleep)
    watch.look()
    watch.look()
    assert not engine.limits
    watch.look()
    qtbot.waitUntil(lambda: app.live.decode.words == before)
    assert app.window.notices.notices[-1].sentence == "It is back."


def test_diagnostics_hold_no_word_of_a_chat(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("Confidential reply.")))
    ask(qtbot, app, "Confidential question")
    app.telemetry.sampled.emit(SAMPLE)
    text = app.diagnostics()
    assert "Llama-3.2-1B-Instruct" in text
    assert "onfidential" not in text


def test_a_link_is_asked_about_first(qtbot: QtBot, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    app = start(ScriptedEngine())
    asked: list[str] = []
    monkeypatch.setattr(QMessageBox, "exec", lambda box: asked.append(box.text()) or QMessageBox.StandardButton.Cancel)
    app.commands.open_link("https://example.org/a")
    app.commands.open_link("file:///etc/passwd")
    assert asked == ["https://example.org/a"]
    qtbot.waitUntil(lambda: app.window.findChild(QMessageBox) is None)


@pytest.mark.parametrize("page", ["about", "conversation", "gpu", "remote", "server", "settings", "shortcuts", "tools"])
def test_nothing_of_a_closed_page_hears_of_another_theme(qtbot: QtBot, start: Start, page: str) -> None:
    app = start(ScriptedEngine())
    app.commands.act(page)
    dialog = app.window.findChild(QDialog)
    assert isinstance(dialog, QDialog)
    dialog.reject()
    qtbot.waitUntil(lambda: app.window.findChild(QDialog) is None)
    with qtbot.captureExceptions() as raised:
        app.theme.choose("dark", 120)
    assert raised == []


class Tour:
    """A user with a keyboard and no mouse."""

    def __init__(self, app: Application, engine: ScriptedEngine, qtbot: QtBot) -> None:
        self.app, self.engine, self.qtbot = app, engine, qtbot
        app.window.activateWindow()
        qtbot.waitUntil(app.window.composer.edit.hasFocus)

    def key(self, name: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
        # Offscreen there is no window manager, which would give the focus back after a dialog.
        if QApplication.activeWindow() is None:
            self.app.window.activateWindow()
            self.qtbot.waitUntil(self.app.window.isActiveWindow)
        QTest.keyClick(QApplication.focusWidget() or self.app.window, name, modifier)

    def control(self, name: Qt.Key) -> None:
        self.key(name, Qt.KeyboardModifier.ControlModifier)

    def enter(self, text: str) -> None:
        QTest.keyClicks(QApplication.focusWidget(), text)
        self.key(Qt.Key.Key_Return)

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: not self.app.session.state.busy)

    def quit(self) -> None:
        self.control(Qt.Key.Key_Q)
        self.qtbot.waitUntil(lambda: self.engine.closed)

    def ask_and_stop(self) -> None:
        self.enter("First question")
        self.wait()
        self.engine.pause_at = 20
        self.enter("Second question")
        self.qtbot.waitUntil(lambda: self.app.session.state.phase == "replying" and self.engine.paused)
        self.key(Qt.Key.Key_Escape)
        self.wait()
        self.engine.gate.set()
        assert self.app.chat.turn(3).end == "stopped"

    def edit_and_switch_back(self) -> None:
        self.key(Qt.Key.Key_Up)
        self.enter(" changed")
        self.wait()
        assert self.app.chat.turn(2).content == "Second question changed"
        assert self.app.window.focusWidget() is self.app.window.composer.edit
        view = self.app.window.transcript.view_of(self.app.chat.turn(2).id)
        assert view is not None
        find(view.row, IconButton, "previous").setFocus(Qt.FocusReason.TabFocusReason)
        self.key(Qt.Key.Key_Space)
        assert self.app.chat.turn(2).content == "Second question"

    def search(self) -> None:
        self.control(Qt.Key.Key_N)
        assert self.app.chat.rowCount() == 0
        self.control(Qt.Key.Key_K)
        self.enter("changed")
        self.qtbot.waitUntil(lambda: self.app.chat.rowCount() > 0)

    def close(self, kind: type[QDialog]) -> None:
        dialog = self.app.window.findChild(kind)
        assert dialog is not None
        dialog.close()


def test_a_tour_by_keyboard_alone(qtbot: QtBot, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, ask, stop, edit, switch version, search, export, change theme, load another model, quit."""
    engine = ScriptedEngine(answer("First reply."), answer("word " * 100), answer("Edited reply."))
    tour = Tour(start(engine), engine, qtbot)
    tour.ask_and_stop()
    tour.edit_and_switch_back()
    tour.search()

    target = tmp_path / "chat.md"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    tour.control(Qt.Key.Key_S)
    qtbot.waitUntil(lambda: [notice.title for notice in tour.app.window.notices.notices] == ["Exported"])
    assert "First reply." in target.read_text("utf-8")

    tour.key(Qt.Key.Key_F1)
    tour.close(ShortcutsPage)
    tour.control(Qt.Key.Key_Comma)
    tour.close(SettingsDialog)

    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "/models/other")
    tour.control(Qt.Key.Key_O)
    qtbot.waitUntil(lambda: engine.sources[-1] == "/models/other")
    tour.wait()
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("/models/m.gguf", ""))
    app_action(tour.app, "open_file")
    qtbot.waitUntil(lambda: engine.sources[-1] == "/models/m.gguf")
    tour.wait()
    tour.quit()


def app_action(app: Application, id: str) -> None:
    app.window.actions_by_id[id].trigger()


def test_a_model_file_that_is_dropped_is_opened_and_the_rest_attached(
    qtbot: QtBot, start: Start, tmp_path: Path
) -> None:
    engine = ScriptedEngine()
    app, model, notes = start(engine), tmp_path / "m.GGUF", tmp_path / "notes.md"
    notes.write_text("Notes.")
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in (notes, model)])
    where, copy = QPointF(300, 300), Qt.DropAction.CopyAction
    event = QDropEvent(where, copy, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    with qtbot.waitSignal(app.window.files) as attached:
        app.window.dropEvent(event)
    assert attached.args == [[notes]]
    qtbot.waitUntil(lambda: engine.sources[-1] == str(model))


def test_an_idle_model_rests_and_comes_back_with_the_next_question(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Awake."))
    app = start(engine)
    app.session.model.rest()
    qtbot.waitUntil(lambda: engine.closed)
    assert app.session.state.phase == "resting"
    ask(qtbot, app, "Hello?")
    assert app.chat.turn(1).content == "Awake."
    assert len(engine.sources) == 2


def test_a_conversation_has_a_prompt_and_a_preset_of_its_own(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    ask(qtbot, app, "Before")
    app.commands.act("conversation")
    dialog = app.window.findChild(ConversationDialog)
    assert dialog is not None
    dialog.system.setPlainText("Answer in verse.")
    dialog.preset.setCurrentIndex(dialog.preset.findData("precise"))
    find(dialog, QPushButton, "Apply").click()
    ask(qtbot, app, "After")
    assert engine.requests[-1].messages[0].content == "Answer in verse."
    assert engine.requests[-1].sampling.temperature == 0.2
    id = app.chat.conversation.id
    app.commands.act("new_chat")
    ask(qtbot, app, "Elsewhere")
    assert engine.requests[-1].sampling.temperature is None
    app.library.open(id, "")
    assert (app.chat.conversation.system, app.chat.conversation.preset) == ("Answer in verse.", "precise")
    assert entries(app)[1] == "Before"


def test_a_split_that_changes_in_mid_reply_is_shown_and_said(qtbot: QtBot, start: Start) -> None:
    model = planned()
    assert model.spec is not None
    assert model.hardware is not None
    other = place(model.spec, model.hardware, Budget(context=8192, vram=2 * 2**30))
    app = start(ScriptedEngine([Piece("Half"), Replanned("A game took 4 GB.", other), *answer("whole")], load=[model]))
    before = app.live.decode.words
    ask(qtbot, app, "Go")
    assert app.live.decode.words != before
    assert app.window.notices.notices[-1].sentence == "A game took 4 GB."
