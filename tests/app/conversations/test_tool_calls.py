"""A reply's tool calls in the window: each asks, is run by a real server, and the reply goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application, StartOptions
from app.conversations.conversation import Turn
from app.conversations.imports.reader import from_json
from app.conversations.store import Store
from app.conversations.tool_loop import DENIED, MOST_ROUNDS, STOPPED, CallCollector
from app.system.paths import places
from app.views.chat.tool_card import ToolCard
from core.events import ToolCall, ToolCallPiece
from tests.app.find import find
from tests.app.scripted_engine import ScriptedEngine, answer
from tests.app.tools_stage import asks_for
from tests.core.keyring_in_memory import Ring
from tests.core.tools.conftest import script

ADD = ("add", '{"a": 2, "b": 40}')


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(asks_for(ADD, text="Let me see."), answer("It is 42."))


@pytest.fixture
def app(qtbot: QtBot, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    ring = Ring()
    monkeypatch.setattr("app.application.system_keyring", lambda: ring)
    running = Application(StartOptions("some/model"), lambda: engine)  # type: ignore[arg-type,return-value]
    running.window.show()
    running.toolbox.put(script())
    qtbot.waitUntil(lambda: bool(running.toolbox.offered()) and running.session.state.phase == "ready")
    yield running
    running.close()
    running.window.close()
    running.window.deleteLater()


def ask(app: Application) -> None:
    app.window.composer.submitted.emit("What is 2 + 40?")


def calls(app: Application) -> list[Turn]:
    return [turn for turn in app.chat.conversation.path() if turn.call is not None]


def card(app: Application, qtbot: QtBot, turn: Turn) -> ToolCard:
    qtbot.waitUntil(lambda: app.window.transcript.view_of(turn.id) is not None)
    view = app.window.transcript.view_of(turn.id)
    assert isinstance(view, ToolCard)
    return view


def asking(app: Application, qtbot: QtBot) -> Turn:
    qtbot.waitUntil(lambda: any(turn.end == "asking" for turn in calls(app)))
    return next(turn for turn in calls(app) if turn.end == "asking")


def press(app: Application, qtbot: QtBot, decision: str) -> None:
    view = card(app, qtbot, asking(app, qtbot))
    next(button for button in view.buttons if button.objectName() == f"allow_{decision}").click()


def done(app: Application, qtbot: QtBot) -> None:
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")


def kept(app: Application) -> list[Turn]:
    """Return the conversation as the next start finds it."""
    app.library.close()
    store = Store(places().conversations)
    turns = store.load(app.chat.conversation.id).path()
    store.close()
    return turns


def test_a_call_asks_is_carried_out_and_the_reply_goes_on(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    ask(app)
    turn = asking(app, qtbot)
    assert app.session.state.phase == "calling"
    assert '"b": 40' in card(app, qtbot, turn).arguments.toPlainText()
    assert {tool.name for tool in engine.requests[0].tools} >= {"add", "echo"}
    press(app, qtbot, "once")
    done(app, qtbot)
    shown = [(turn.role, turn.content, turn.end) for turn in app.chat.conversation.path()]
    assert shown == [("user", "What is 2 + 40?", ""), ("assistant", "Let me see.", "called"), ("tool", "42", "done"),
                     ("assistant", "It is 42.", "stop")]  # fmt: skip
    asked, result = engine.requests[1].messages[-2:]
    assert (asked.tool_calls[0].name, json.loads(asked.tool_calls[0].arguments)) == ("add", {"a": 2, "b": 40})
    assert (result.role, result.content, result.tool_call_id) == ("tool", "42", asked.tool_calls[0].id)
    assert app.toolbox.permission("add") == "ask"


def test_a_call_in_a_conversation_that_is_not_shown_asks_there_and_the_reply_goes_on(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.pause_at = 1
    ask(app)
    qtbot.waitUntil(lambda: engine.paused)
    app.commands.act("new_chat")
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.phase == "calling")
    find(app.window.notices, QPushButton, "Go there").click()
    press(app, qtbot, "once")
    app.commands.act("new_chat")
    done(app, qtbot)
    assert app.chat.rowCount() == 0
    app.library.open(app.session.answered.id, "")
    assert [turn.content for turn in app.chat.conversation.path()] == [
        "What is 2 + 40?", "Let me see.", "42", "It is 42.",
    ]  # fmt: skip


def test_the_keyboard_stays_at_a_call_that_was_decided(qtbot: QtBot, app: Application) -> None:
    ask(app)
    view = card(app, qtbot, asking(app, qtbot))
    once = view.buttons[0]
    qtbot.waitUntil(once.isVisible)
    once.setFocus()
    QTest.keyClick(once, Qt.Key.Key_Space)
    assert app.window.focusWidget() is view.head
    done(app, qtbot)


def test_always_is_kept_and_the_next_call_of_it_does_not_ask(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.replies = [asks_for(ADD), asks_for(ADD), answer("Twice.")]
    ask(app)
    press(app, qtbot, "always")
    done(app, qtbot)
    assert [turn.end for turn in calls(app)] == ["done", "done"]
    assert app.chat.turn(app.chat.rowCount() - 1).content == "Twice."
    assert app.toolbox.permission("add") == "always"


def test_never_is_told_to_the_model_and_the_tool_is_offered_no_more(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    ask(app)
    press(app, qtbot, "never")
    done(app, qtbot)
    assert engine.requests[1].messages[-1].content == DENIED
    assert "add" not in {tool.name for tool in engine.requests[1].tools}
    assert [turn.end for turn in calls(app)] == ["denied"]


def test_several_calls_of_one_reply_are_decided_one_by_one(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.replies = [asks_for(ADD, ("echo", '{"text": "hi"}'), ("nothing", "{}"), ("echo", "[1]")), answer("Done.")]
    ask(app)
    press(app, qtbot, "once")
    press(app, qtbot, "once")
    done(app, qtbot)
    assert [turn.end for turn in calls(app)] == ["done", "done", "failed", "failed"]
    results = [message for message in engine.requests[1].messages if message.role == "tool"]
    assert [result.content for result in results[:2]] == ["42", "hi"]
    assert "no tool named nothing" in results[2].content
    assert "not a JSON object" in results[3].content
    assert len(engine.requests[1].messages[-5].tool_calls) == 4


def test_stop_ends_a_call_that_hangs_and_the_window_goes_on(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    engine.replies = [asks_for(("hang", "{}")), answer("Fine.")]
    ask(app)
    press(app, qtbot, "once")
    qtbot.waitUntil(lambda: calls(app)[0].end == "running")
    app.window.composer.stop_requested.emit()
    assert (app.session.state.phase, calls(app)[0].end, calls(app)[0].content) == ("ready", "stopped", STOPPED)
    assert len(engine.requests) == 1, "a reply that was stopped does not go on"
    ask(app)
    done(app, qtbot)
    assert engine.requests[1].messages[2].content == STOPPED


def test_a_model_that_never_stops_calling_is_given_no_more_tools(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    app.toolbox.permit("test", "add", "always")
    engine.replies = [*[asks_for(ADD)] * MOST_ROUNDS, answer("Enough.")]
    ask(app)
    qtbot.waitUntil(lambda: len(engine.requests) == MOST_ROUNDS + 1 and app.session.state.phase == "ready")
    assert engine.requests[-2].tools
    assert engine.requests[-1].tools == ()


def test_calls_survive_a_restart_and_are_exported_and_read_back(
    qtbot: QtBot, app: Application, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ask(app)
    press(app, qtbot, "once")
    done(app, qtbot)
    shown = app.chat.conversation
    folder = tmp_path_factory.mktemp("export")
    assert app.library.write(shown.id, "json", folder / "a.json")
    assert app.library.write(shown.id, "markdown", folder / "a.md")
    assert [vars(turn) for turn in kept(app)] == [vars(turn) for turn in shown.path()]
    (back,) = from_json((folder / "a.json").read_text("utf-8"))
    call = back.conversation.path()[2].call
    assert (call.name if call else "", back.conversation.path()[2].content) == ("add", "42")
    assert "Tool: add (Done)" in (folder / "a.md").read_text("utf-8")


def test_what_waited_when_the_program_ended_is_a_stopped_call(qtbot: QtBot, app: Application) -> None:
    ask(app)
    turn = asking(app, qtbot)
    again = next(one for one in kept(app) if one.id == turn.id)
    assert (again.end, again.call) == ("stopped", turn.call)


def test_pieces_of_calls_are_joined_whatever_a_server_numbers_them() -> None:
    collector = CallCollector()
    pieces = [ToolCallPiece(0, "a", "one"), ToolCallPiece(0, arguments='{"x":'), ToolCallPiece(0, arguments="1}"),
              ToolCallPiece(0, "b", "two", "{}"), ToolCallPiece(3, "", "three", "{}")]  # fmt: skip
    for piece in pieces:
        collector.push(piece)
    first, second, third = collector.calls()
    assert (first, second) == (ToolCall("a", "one", '{"x":1}'), ToolCall("b", "two", "{}"))
    assert (third.name, bool(third.id)) == ("three", True)
