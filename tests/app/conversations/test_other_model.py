"""Another model is chosen while a reply is written: the reply is stopped only for one that can be loaded."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application
from app.engine.engine_import import make_remote_engine
from app.engine.routed_engine import RoutedEngine
from app.views.controls.controls import ElidedLabel
from core.errors import ModelUnreadable
from core.events import Checked, Failed, Finished, Loading, Piece, Prefill
from tests.app.conftest import Start
from tests.app.conversations.test_background_reply import texts
from tests.app.find import find
from tests.app.scripted_engine import END, MODEL, ScriptedEngine, answer, ask
from tests.core.remote.test_remote import fake

OTHER = replace(MODEL, name="Other-8B")
HALF = [Prefill(1, 1, 0), Piece("Half "), Piece("of ")]


@pytest.fixture
def engine() -> ScriptedEngine:
    """Pause in the middle of the first reply."""
    engine = ScriptedEngine([*HALF, Piece("it."), Finished("stop", END)], answer("Another."))
    engine.pause_at = len(HALF)
    return engine


@pytest.fixture
def app(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    """Provide a window with a reply that is half written."""
    return half_way(qtbot, start, engine)


def half_way(qtbot: QtBot, start: Start, engine: ScriptedEngine) -> Application:
    app = start(RoutedEngine(lambda: engine, make_remote_engine))
    app.window.composer.submitted.emit("A question")
    qtbot.waitUntil(lambda: texts(app) == ["A question", "Half of "] and engine.paused)
    return app


def test_one_that_cannot_be_loaded_stops_nothing(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    engine.check_events = [Loading("read", 0.02), Failed(ModelUnreadable("It is gone."))]
    app.window.model_chosen.emit("some/other")
    assert app.session.state.phase == "replying"
    assert app.window.notices.load.isVisible(), "what happens to the press is shown at once"
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert texts(app) == ["A question", "Half of it."]
    qtbot.waitUntil(lambda: bool(app.window.notices.notices))
    (notice,) = app.window.notices.notices
    assert notice.sentence.endswith(f"{MODEL.name} stays loaded.")
    assert not app.window.notices.load.isVisible()
    assert engine.sources == ["some/model"]
    ask(qtbot, app, "And again?")
    assert texts(app)[-1] == "Another."


def test_one_that_can_be_loaded_stops_the_reply_and_answers_the_next(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.load_events = [Loading("weights", 0.5), OTHER]
    app.window.model_chosen.emit("some/other")
    qtbot.waitUntil(lambda: app.session.state.phase == "loading")
    assert engine.paused, "a reply that hangs does not keep its model"
    assert app.chat.turn(1).end == "stopped"
    assert app.chat.turn(1).content == "Half of "
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.model == OTHER)
    assert app.session.state.candidate == ""
    assert engine.sources == ["some/model", "some/other"]
    ask(qtbot, app, "And again?")
    assert texts(app)[-1] == "Another."


def test_a_check_can_be_cancelled(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    app.window.model_chosen.emit("some/other")
    find(app.window.notices.load, QPushButton, "Cancel").click()
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    qtbot.waitUntil(lambda: not app.worker.busy)
    assert texts(app) == ["A question", "Half of it."]
    assert engine.sources == ["some/model"]


def test_a_reply_goes_on_while_another_model_is_read(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    engine.load_events = [OTHER]
    engine.check_gate.clear()
    app.window.model_chosen.emit("some/other")
    qtbot.waitUntil(lambda: bool(engine.checked))
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert texts(app) == ["A question", "Half of it."]
    assert app.session.state.candidate == "some/other"
    engine.check_gate.set()
    qtbot.waitUntil(lambda: app.session.state.model == OTHER)


def test_closing_the_window_waits_for_no_check(qtbot: QtBot, app: Application) -> None:
    app.window.model_chosen.emit("some/other")
    app.window.close()
    assert app.chat.turn(1).end == "stopped"


@pytest.mark.parametrize("usable", [True, False])
def test_a_waiting_question_is_answered_by_the_model_that_stays(
    qtbot: QtBot, app: Application, engine: ScriptedEngine, usable: bool
) -> None:
    engine.check_events = [Checked() if usable else Failed(ModelUnreadable("It is gone."))]
    engine.load_events = [OTHER]
    app.commands.act("new_chat")
    app.window.composer.submitted.emit("Another question")
    app.window.model_chosen.emit("some/other")
    engine.gate.set()
    qtbot.waitUntil(lambda: len(texts(app)) == 2 and not app.session.state.busy)
    assert texts(app) == ["Another question", "Another."]
    assert app.chat.turn(1).receipt["model"] == (OTHER if usable else MODEL).name


def test_a_server_that_is_silent_does_not_hold_up_the_reply(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        app.window.model_chosen.emit(f"remote:http://127.0.0.1:{server.getsockname()[1]}/v1#big/model")
        engine.gate.set()
        qtbot.waitUntil(lambda: not app.session.state.busy)
        assert texts(app) == ["A question", "Half of it."]
        assert app.session.state.candidate
        words = app.window.status.findChild(ElidedLabel)
        assert words is not None
        assert words.accessibleName() == "Another model is being checked"
        app.session.model.cancel_load()
        assert not app.session.state.candidate
    ask(qtbot, app, "And again?")
    assert texts(app)[-1] == "Another."


@pytest.mark.parametrize("name", ["big/model", "small/model"])
def test_a_model_on_another_computer_is_checked_there(
    qtbot: QtBot, app: Application, engine: ScriptedEngine, name: str
) -> None:
    with fake() as (url, _):
        app.window.model_chosen.emit(f"remote:{url}#{name}")
        if name == "big/model":
            qtbot.waitUntil(lambda: app.session.state.model not in (None, MODEL))
        else:
            qtbot.waitUntil(lambda: bool(app.window.notices.notices))
            assert "has no model named small/model" in app.window.notices.notices[0].sentence
        assert not app.session.state.candidate
    assert not engine.checked


def test_only_the_model_that_was_chosen_last_is_waited_for(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        engine.check_gate.clear()
        app.window.model_chosen.emit("some/other")
        qtbot.waitUntil(lambda: engine.checked == ["some/other"])
        app.window.model_chosen.emit(f"remote:http://127.0.0.1:{server.getsockname()[1]}/v1#big/model")
        engine.gate.set()
        qtbot.waitUntil(lambda: not app.session.state.busy)
        assert texts(app) == ["A question", "Half of it."]
        assert engine.sources == ["some/model"], "what was found out of one does not load another"
        app.session.model.cancel_load()
