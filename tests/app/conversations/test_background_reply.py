"""A reply goes on in its conversation while another one is shown, and is there when the user returns."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application
from app.conversations.conversation import Conversation, Turn
from app.system.paths import places
from app.views.controls.controls import IconButton, RoundButton
from app.views.conversations.entry_list import EntryModel
from app.views.frame.status_line import Reading
from core.errors import ModelFailed, ModelUnreadable
from core.events import Failed, Piece
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.scripted_engine import MODEL, ScriptedEngine, answer, ask

HALF = Piece("Half of it. ")


@pytest.fixture
def engine() -> ScriptedEngine:
    return pausing_engine()


@pytest.fixture
def app(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    return half_written(qtbot, start, engine)


def pausing_engine() -> ScriptedEngine:
    """Make an engine that pauses in the middle of the first reply."""
    engine = ScriptedEngine([HALF, *answer("The rest.")], answer("Another."))
    engine.pause_at = 2
    return engine


def half_written(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    """Return a window with a new conversation, while the reply in another one is half written."""
    app = start(engine)
    app.window.composer.submitted.emit("First question")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying" and engine.paused)
    app.commands.act("new_chat")
    return app


def go_on(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)


def texts(app: Application) -> list[str]:
    return [turn.content for turn in app.chat.conversation.path()]


def on_disk(role: str) -> list[tuple[str, str]]:
    """Return the turns in the file, as they would be found after the program was killed; it locks its own file."""
    with tempfile.TemporaryDirectory() as folder:
        killed = shutil.copytree(places().conversations.parent, Path(folder) / "killed")
        # A copy that is made during a write may be torn, unlike what a killed program leaves.
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(killed / places().conversations.name)) as file:
            return list(file.execute("SELECT content, ending FROM messages WHERE role = ?", (role,)))
    return []


def listed(app: Application) -> list[str]:
    model = app.sidebar.list.model()
    rows = [model.index(row, 0) for row in range(model.rowCount())]
    return [str(row.data(Qt.ItemDataRole.AccessibleTextRole)) for row in rows]


def test_it_is_written_to_its_end(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    first = app.session.answered.id
    qtbot.waitUntil(lambda: on_disk("assistant") == [(HALF.text, "streaming")])
    assert "First question, being answered" in listed(app)
    assert find(app.window.status, Reading, "Context n/a"), "it is another conversation's"
    assert texts(app) == []
    model = app.sidebar.list.model()
    assert isinstance(model, EntryModel)
    assert not model.index_of_open().isValid()
    go_on(qtbot, app, engine)
    assert "First question, new reply" in listed(app)
    assert find(app.window.status, Reading, "Context 0 of 8,192")
    qtbot.waitUntil(lambda: on_disk("assistant") == [("Half of it. The rest.", "stop")])
    app.library.open(first, "")
    assert texts(app) == ["First question", "Half of it. The rest."]
    assert app.chat.turn(1).receipt["new_tokens"] == 412


def test_the_user_may_return_before_its_end(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.library.open(app.session.answered.id, "")
    assert texts(app) == ["First question", HALF.text]
    assert find(app.window.composer, RoundButton, "Stop").isEnabled()
    go_on(qtbot, app, engine)
    assert texts(app) == ["First question", "Half of it. The rest."]
    qtbot.waitUntil(lambda: app.window.transcript.view_of(app.chat.turn(1).id) is not None)


def test_the_stop_key_says_where_the_reply_is_and_stops_it_there(qtbot: QtBot, app: Application) -> None:
    first = app.session.answered.id
    edit = app.window.composer.edit
    QTest.keyClick(edit, Qt.Key.Key_Escape)
    assert app.session.state.busy, "what is stopped would not be seen"
    button = find(app.window.notices, QPushButton, "Go there")
    button.setFocus()
    QTest.keyClick(button, Qt.Key.Key_Space)
    assert app.chat.conversation.id == first
    assert edit.hasFocus()
    assert not app.window.notices.notices
    QTest.keyClick(edit, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).end == "stopped"


def test_leaving_the_list_by_key_stops_no_reply(app: Application) -> None:
    app.library.open(app.session.answered.id, "")
    app.sidebar.list.setFocus()
    QTest.keyClick(app.sidebar.list, Qt.Key.Key_Escape)
    assert app.window.composer.edit.hasFocus()
    assert app.session.state.busy_here
    assert not app.window.notices.notices


def test_a_reply_is_not_continued_during_another_one(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.chat.conversation.add(Turn("user", "Before"))
    cut = app.chat.add(Turn("assistant", "Cut", end="length", parent=app.chat.conversation.path()[0].id))
    app.session.go_on(cut.id)
    assert find(app.window.notices, QPushButton, "Go there")
    assert cut.end == "length"
    go_on(qtbot, app, engine)
    assert not app.window.notices.notices
    app.session.go_on(cut.id)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert cut.content == "CutAnother."


def test_the_next_question_is_answered_where_it_is_asked(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    first = app.session.answered
    go_on(qtbot, app, engine)
    ask(qtbot, app, "Second question")
    assert texts(app) == ["Second question", "Another."]
    assert len(first.turns()) == 2


def test_deleting_the_conversation_stops_it(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    first = app.session.answered.id
    app.sidebar.deleted.emit(first)
    assert not app.session.state.busy
    qtbot.waitUntil(lambda: not app.worker.busy)
    engine.gate.set()
    ask(qtbot, app, "Second question")
    assert texts(app) == ["Second question", "Another."]
    app.library.undelete(first)
    app.library.open(first, "")
    assert texts(app) == ["First question", HALF.text]
    assert app.chat.turn(1).end == "stopped"


def test_closing_the_window_keeps_what_was_written(app: Application, start: Start) -> None:
    first = app.session.answered.id
    app.window.close()
    again = start(ScriptedEngine())
    again.library.open(first, "")
    assert texts(again) == ["First question", HALF.text]
    assert again.chat.turn(1).end == "stopped"


def test_trying_again_after_a_failure_means_its_conversation(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.replies[0] = [Failed(ModelFailed("It broke."))]
    go_on(qtbot, app, engine)
    ask(qtbot, app, "Second question")
    second = app.chat.conversation.id
    app.commands.act("new_chat")
    engine.replies = [answer("Now.")]
    find(app.window.notices, QPushButton, "Try again").click()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert texts(app) == []
    app.library.open(second, "")
    assert texts(app) == ["Second question", "Now."]


def test_a_question_stopped_during_the_load_stays_unanswered_and_can_be_asked_again(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Here."))
    engine.gate.clear()
    app = start(engine, phase="loading")
    app.window.composer.submitted.emit("Early")
    app.session.stop()
    assert texts(app) == ["Early"]
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    assert not engine.requests
    qtbot.waitUntil(lambda: app.window.transcript.view_of(app.chat.turn(0).id) is not None)
    ask_again(qtbot, app)
    qtbot.waitUntil(lambda: app.chat.rowCount() == 2 and not app.session.state.busy)
    assert texts(app) == ["Early", "Here."]
    assert app.chat.conversation.versions(app.chat.turn(1).id) == (1, 1)
    assert not find(app.window.transcript, IconButton, "Ask again").isVisible()


def test_a_question_that_was_stopped_is_not_offered_again_behind_a_new_one(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Here."))
    engine.gate.clear()
    app = start(engine, phase="loading")
    app.window.composer.submitted.emit("Early")
    app.session.stop()
    early = app.chat.turn(0)
    qtbot.waitUntil(lambda: offers_again(app, early))
    app.window.composer.submitted.emit("Later")
    qtbot.waitUntil(lambda: app.window.transcript.view_of(app.chat.turn(1).id) is not None)
    assert not offers_again(app, early), "what follows it would go"
    assert not offers_again(app, app.chat.turn(1)), "it is being asked"
    engine.gate.set()
    qtbot.waitUntil(lambda: app.chat.rowCount() == 3 and not app.session.state.busy)
    assert texts(app) == ["Early", "Later", "Here."]
    assert [turn.end for turn in app.chat.conversation.turns()] == ["", "", "stop"]
    qtbot.waitUntil(lambda: on_disk("user") == [("Early", ""), ("Later", "")])


def test_nor_is_one_that_an_earlier_version_has_kept_so(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    kept = Conversation()
    early = kept.add(Turn("user", "Early", end="stopped"))
    kept.add(Turn("user", "Later", end="stopped", parent=early.id))
    for turn in kept.turns():
        app.chat.added.emit(kept, turn)
    app.library.open(kept.id, "")
    assert texts(app) == ["Early", "Later"]
    assert [app.chat.turn(row).end for row in range(2)] == ["", "stopped"]
    qtbot.waitUntil(lambda: offers_again(app, app.chat.turn(1)))


def offers_again(app: Application, turn: Turn) -> bool:
    view = app.window.transcript.view_of(turn.id)
    return view is not None and find(view, IconButton, "Ask again").isVisible()


def ask_again(qtbot: QtBot, app: Application) -> None:
    qtbot.waitUntil(lambda: find(app.window.transcript, IconButton, "Ask again").isVisible())
    find(app.window.transcript, IconButton, "Ask again").click()


def test_a_question_whose_model_cannot_be_loaded_stays_unanswered(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(load=[Failed(ModelUnreadable("It is gone."))])
    engine.gate.clear()
    app = start(engine, phase="loading")
    app.window.composer.submitted.emit("Early")
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.phase == "empty")
    assert texts(app) == ["Early"]
    engine.load_events = [MODEL]
    app.window.model_chosen.emit("good")
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    app.session.regenerate(app.chat.turn(0).id)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert texts(app) == ["Early", "Hello."]


def test_a_question_that_waited_when_the_program_was_killed_can_be_asked_again(
    qtbot: QtBot, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    first = start(engine, phase="loading")
    first.window.composer.submitted.emit("Early")
    id = first.chat.conversation.id
    qtbot.waitUntil(lambda: on_disk("user") == [("Early", "")])
    shutil.copytree(tmp_path / "home", tmp_path / "killed")
    monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "killed"))
    second = start(ScriptedEngine(answer("Here.")))
    second.library.open(id, "")
    qtbot.waitUntil(lambda: second.window.transcript.view_of(second.chat.turn(0).id) is not None)
    ask_again(qtbot, second)
    qtbot.waitUntil(lambda: not second.session.state.busy and second.chat.rowCount() == 2)
    assert texts(second) == ["Early", "Here."]
    engine.gate.set()
    first.session.stop()
