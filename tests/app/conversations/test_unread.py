"""A conversation with a reply that ended unseen is marked in the list until it is opened, also by the next start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from app.application import Application
from core.errors import ModelFailed
from core.events import Failed
from tests.app.conftest import Start
from tests.app.conversations.test_background_reply import go_on, half_written, listed, pausing_engine
from tests.app.scripted_engine import ScriptedEngine, ask

SEEN, NEW = "First question", "First question, new reply"


@pytest.fixture
def engine() -> ScriptedEngine:
    return pausing_engine()


@pytest.fixture
def app(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    return half_written(qtbot, start, engine)


def test_the_mark_goes_once_it_is_opened(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    first = app.session.answered.id
    assert NEW not in listed(app)
    go_on(qtbot, app, engine)
    assert NEW in listed(app)
    app.library.open(first, "")
    assert SEEN in listed(app)
    app.commands.act("new_chat")
    assert SEEN in listed(app)


def test_a_reply_that_was_seen_leaves_no_mark(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.library.open(app.session.answered.id, "")
    go_on(qtbot, app, engine)
    app.commands.act("new_chat")
    assert SEEN in listed(app)


def test_a_reply_that_failed_is_marked_too(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    go_on(qtbot, app, engine)
    engine.replies = [[Failed(ModelFailed("It broke."))]]
    engine.gate.clear()
    app.window.composer.submitted.emit("Second question")
    app.commands.act("new_chat")
    go_on(qtbot, app, engine)
    assert "Second question, new reply" in listed(app)


def test_the_mark_outlives_the_window_and_the_settings_of_its_conversation(
    qtbot: QtBot, app: Application, engine: ScriptedEngine, start: Start
) -> None:
    first = app.session.answered.id
    app.library.open(first, "")
    app.library.describe("Be brief.", "precise")
    app.commands.act("new_chat")
    go_on(qtbot, app, engine)
    app.window.close()
    again = start(ScriptedEngine())
    assert NEW in listed(again)
    again.library.open(first, "")
    assert again.chat.conversation.preset == "precise"
    assert SEEN in listed(again)


def test_the_mark_is_not_exported(qtbot: QtBot, app: Application, engine: ScriptedEngine, tmp_path: Path) -> None:
    go_on(qtbot, app, engine)
    assert app.library.write("", "json", tmp_path / "all.json")
    assert NEW in listed(app)
    assert "unread" not in json.dumps(json.loads((tmp_path / "all.json").read_text("utf-8")))
    ask(qtbot, app, "Second question")
    assert NEW in listed(app)
