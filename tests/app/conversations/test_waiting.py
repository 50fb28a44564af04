"""Questions asked during the reply in another conversation wait for it, are answered in turn, and can be taken back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel, QPushButton, QWidget
from pytestqt.qtbot import QtBot

from app.application import Application
from app.views.controls.controls import IconButton, RoundButton
from core.errors import ModelFailed, ModelUnreadable
from core.events import Failed, Piece
from tests.app.conftest import Start
from tests.app.conversations.test_background_reply import listed, on_disk, texts
from tests.app.find import find
from tests.app.scripted_engine import ScriptedEngine, answer

HALF = Piece("Half of it. ")


@pytest.fixture
def engine() -> ScriptedEngine:
    """Pause in the middle of the first reply."""
    engine = ScriptedEngine([HALF, *answer("The rest.")], answer("Second answer."), answer("Third answer."))
    engine.pause_at = 2
    return engine


@pytest.fixture
def app(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    """Provide a window with a question that waits, while the reply in another conversation is half written."""
    app = start(engine)
    submit(app, "First question")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying" and engine.paused)
    app.commands.act("new_chat")
    submit(app, "Second question")
    return app


def submit(app: Application, text: str) -> None:
    QTest.keyClicks(app.window.composer.edit, text)
    QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Return)


def go_on(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy and not app.session.state.waiting)


def last_view(app: Application) -> QWidget:
    return app.window.transcript.view_of(app.chat.turn(app.chat.rowCount() - 1).id) or QWidget()


def waits(app: Application) -> bool:
    label = last_view(app).findChild(QLabel, "waits")
    return isinstance(label, QLabel) and label.isVisible()


def test_it_is_shown_as_waiting_and_answered_when_the_engine_is_free(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    assert texts(app) == ["Second question"]
    assert not app.window.composer.edit.toPlainText()
    qtbot.waitUntil(lambda: waits(app))
    assert {"First question, being answered", "Second question, waiting for a reply"} <= {*listed(app)}
    assert len(engine.requests) == 1
    go_on(qtbot, app, engine)
    assert texts(app) == ["Second question", "Second answer."]
    assert {"First question, new reply", "Second question"} <= {*listed(app)}
    qtbot.waitUntil(lambda: not waits(app))


def test_questions_are_answered_in_turn_wherever_the_user_is(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    second = app.chat.conversation.id
    app.commands.act("new_chat")
    submit(app, "Third question")
    third = app.chat.conversation.id
    app.library.open(second, "")
    app.commands.act("new_chat")
    go_on(qtbot, app, engine)
    assert [request.messages[-1].content for request in engine.requests] == [
        "First question", "Second question", "Third question"
    ]  # fmt: skip
    app.library.open(second, "")
    assert texts(app) == ["Second question", "Second answer."]
    app.library.open(third, "")
    assert texts(app) == ["Third question", "Third answer."]


@pytest.mark.parametrize("way", ["key", "composer", "message"])
def test_it_can_be_taken_back_and_asked_later(qtbot: QtBot, app: Application, engine: ScriptedEngine, way: str) -> None:
    qtbot.waitUntil(lambda: waits(app))
    if way == "key":
        QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Escape)
    elif way == "composer":
        find(app.window.composer, RoundButton, "Stop").click()
    else:
        find(last_view(app), IconButton, "Take back").click()
    assert not app.session.state.waiting
    assert app.session.state.busy, "the other reply goes on"
    assert (texts(app), app.window.composer.text) == ([], "Second question")
    go_on(qtbot, app, engine)
    submit(app, ", changed")
    qtbot.waitUntil(lambda: len(texts(app)) == 2 and not app.session.state.busy)
    assert texts(app) == ["Second question, changed", "Second answer."]
    assert app.chat.conversation.versions(app.chat.turn(0).id) == (1, 1)
    qtbot.waitUntil(lambda: ("Second question", "draft") not in on_disk("user"))


def test_it_stays_where_something_else_is_written(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    QTest.keyClicks(app.window.composer.edit, "Something else")
    app.session.stop()
    assert (texts(app), app.window.composer.text) == (["Second question"], "Something else")
    go_on(qtbot, app, engine)
    qtbot.waitUntil(lambda: find(last_view(app), IconButton, "Ask again").isVisible())
    find(last_view(app), IconButton, "Ask again").click()
    qtbot.waitUntil(lambda: len(texts(app)) == 2 and not app.session.state.busy)
    assert texts(app) == ["Second question", "Second answer."]


def test_taken_back_it_waits_in_the_composer_of_its_conversation(app: Application) -> None:
    second = app.chat.conversation.id
    app.session.stop()
    QTest.keyClicks(app.window.composer.edit, ", changed")
    app.library.open(app.session.answered.id, "")
    assert app.window.composer.text == ""
    app.library.open(second, "")
    assert (texts(app), app.window.composer.text) == ([], "Second question, changed")
    app.commands.act("new_chat")
    QTest.keyClicks(app.window.composer.edit, "Something else")
    app.library.open(second, "")
    assert (texts(app), app.window.composer.text) == (["Second question, changed"], "Something else")


def test_its_files_are_taken_back_too(qtbot: QtBot, app: Application, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Buy milk.", "utf-8")
    app.commands.act("new_chat")
    app.attachments.add([file])
    qtbot.waitUntil(lambda: app.attachments.ready("") is not None)
    submit(app, "What shall I buy?")
    third = app.chat.conversation.id
    app.session.stop()
    qtbot.waitUntil(lambda: [each.document and each.document.name for each in app.attachments.pending] == ["notes.txt"])
    app.commands.act("new_chat")
    assert not app.attachments.pending
    app.library.open(third, "")
    assert app.window.composer.text == "What shall I buy?"
    qtbot.waitUntil(lambda: [each.document and each.document.name for each in app.attachments.pending] == ["notes.txt"])


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_taken_back_it_outlasts_the_program(
    qtbot: QtBot, app: Application, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    second = app.chat.conversation.id
    app.session.stop()
    qtbot.waitUntil(lambda: ("Second question", "draft") in on_disk("user"))
    if end == "killed":
        shutil.copytree(tmp_path / "home", tmp_path / "killed")
        monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "killed"))
    else:
        QTest.keyClicks(app.window.composer.edit, ", changed")
        app.window.close()
    again = start(ScriptedEngine())
    again.library.open(second, "")
    assert texts(again) == []
    assert again.window.composer.text == ("Second question" if end == "killed" else "Second question, changed")


def test_taken_back_it_is_found_by_its_words(qtbot: QtBot, app: Application) -> None:
    question = app.chat.turn(0).id
    second = app.chat.conversation.id
    app.session.stop()
    app.commands.act("new_chat")
    app.library.open(second, question)
    assert (texts(app), app.window.composer.text) == ([], "Second question")
    QTest.keyClicks(app.window.composer.edit, ", changed")
    app.library.open(second, question)
    assert app.window.composer.text == "Second question, changed"


def test_another_version_of_a_reply_waits_too(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> None:
    engine.pause_at = None
    app = start(engine)
    submit(app, "First question")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    first = app.chat.conversation.id
    app.commands.act("new_chat")
    engine.pause_at = 2
    submit(app, "Second question")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying" and engine.paused)
    app.library.open(first, "")
    app.commands.act("regenerate")
    qtbot.waitUntil(lambda: app.session.state.waiting == (first,))
    app.session.stop()
    assert app.chat.turn(0).end == "", "it is answered as before"
    app.commands.act("regenerate")
    go_on(qtbot, app, engine)
    assert texts(app) == ["First question", "Third answer."]
    assert app.chat.conversation.versions(app.chat.turn(1).id) == (2, 2)


def test_deleting_either_conversation_leaves_the_other(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.sidebar.deleted.emit(app.chat.conversation.id)
    assert not app.session.state.waiting
    submit(app, "Third question")
    app.sidebar.deleted.emit(app.session.answered.id)
    engine.gate.set()
    qtbot.waitUntil(lambda: texts(app) == ["Third question", "Second answer."])


def test_it_is_asked_after_a_reply_that_failed_which_can_be_asked_again(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.replies = [[Failed(ModelFailed("It broke."))], answer("Third answer."), answer("Once more.")]
    second = app.chat.conversation.id
    app.commands.act("new_chat")
    submit(app, "Third question")
    go_on(qtbot, app, engine)
    assert texts(app) == ["Third question", "Third answer."]
    find(app.window.notices, QPushButton, "Try again").click()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert texts(app) == ["Third question", "Third answer."]
    app.library.open(second, "")
    assert texts(app) == ["Second question", "Once more."]


def test_it_stays_when_the_program_is_killed(
    qtbot: QtBot, app: Application, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = app.chat.conversation.id
    qtbot.waitUntil(lambda: ("Second question", "waiting") in on_disk("user"))
    shutil.copytree(tmp_path / "home", tmp_path / "killed")
    monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "killed"))
    again = start(ScriptedEngine())
    again.library.open(second, "")
    assert texts(again) == ["Second question"]
    qtbot.waitUntil(lambda: find(again.window.transcript, IconButton, "Ask again").isVisible())
    assert not waits(again)


def test_closing_the_window_keeps_it(app: Application, start: Start) -> None:
    second = app.chat.conversation.id
    app.window.close()
    again = start(ScriptedEngine())
    again.library.open(second, "")
    assert [turn.end for turn in again.chat.conversation.path()] == ["stopped"]


def test_another_model_answers_it(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.window.model_chosen.emit("another/model")
    go_on(qtbot, app, engine)
    qtbot.waitUntil(lambda: len(texts(app)) == 2 and not app.session.state.busy)
    assert texts(app) == ["Second question", "Second answer."]


def test_it_stays_unanswered_if_another_model_cannot_be_loaded(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.load_events = [Failed(ModelUnreadable("It is gone."))]
    app.window.model_chosen.emit("another/model")
    go_on(qtbot, app, engine)
    assert texts(app) == ["Second question"]
    assert app.chat.turn(0).end == "stopped"
