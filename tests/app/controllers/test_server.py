"""The local server beside the chat: started from its page, answered by the window's engine in turns."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any

import pytest
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application
from app.views.server.server_dialog import ServerDialog
from core.server.server import Server
from tests.app.conftest import Start
from tests.app.scripted_engine import ScriptedEngine, answer
from tests.core.keyring_in_memory import Ring

BODY = {"messages": [{"role": "user", "content": "Who are you?"}]}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(answer("A scripted one."))


@pytest.fixture
def app(start: Start, engine: ScriptedEngine) -> Application:
    return start(engine)


class Caller(threading.Thread):
    """Calls the server in a thread of its own, as another program would."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._host = address.removeprefix("http://").removesuffix("/v1")
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=120)
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY), {"User-Agent": "Editor/1.0"})
        response = connection.getresponse()
        self.answer = response.status, json.loads(response.read())
        connection.close()


def opened(app: Application) -> ServerDialog:
    app.commands.act("server")
    dialog = app.window.findChild(ServerDialog)
    assert isinstance(dialog, ServerDialog)
    return dialog


def press(dialog: ServerDialog) -> None:
    button = dialog.findChild(QPushButton, "switch")
    assert button is not None
    button.click()


def test_a_program_is_answered_by_the_windows_engine(qtbot: QtBot, app: Application, engine: ScriptedEngine) -> None:
    dialog = opened(app)
    press(dialog)
    qtbot.waitUntil(lambda: app.server.runs)
    assert dialog.address.text().startswith("http://127.0.0.1:")
    caller = Caller(dialog.address.text())
    qtbot.waitUntil(lambda: not caller.is_alive())
    status, body = caller.answer
    assert (status, body["choices"][0]["message"]["content"]) == (200, "A scripted one.")
    qtbot.waitUntil(lambda: "/v1/chat/completions" in dialog.log.toPlainText())
    assert "Editor/1.0" in dialog.clients.text()
    assert app.chat.rowCount() == 0, "what others ask is no part of the conversation"
    press(dialog)
    qtbot.waitUntil(lambda: app.server.state.phase == "off")
    assert dialog.address.text() == ""


def test_another_key_refuses_programs_with_the_old_one(
    qtbot: QtBot, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Ring()
    monkeypatch.setattr("core.keyring.system_keyring", lambda: ring)
    dialog = opened(app)
    app.server.start(wide=True)
    qtbot.waitUntil(lambda: app.server.runs)
    address, old = app.server.state.address, app.server.state.key
    assert dialog.key.text() == old
    dialog.new_key.click()
    qtbot.waitUntil(lambda: app.server.runs and app.server.state.key != old)
    assert (app.server.state.address, dialog.key.text()) == (address, app.server.state.key)
    assert list(ring.kept.values()) == [app.server.state.key]
    assert statuses(address, old, app.server.state.key) == [401, 200]


def statuses(address: str, *keys: str) -> list[int]:
    """Return the server's answer to each key."""
    port, found = address.rpartition(":")[2].removesuffix("/v1"), []
    for key in keys:
        connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=120)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        found.append(connection.getresponse().status)
        connection.close()
    return found


def test_chat_and_programs_take_turns_and_stop_ends_only_the_chat(
    qtbot: QtBot, app: Application, engine: ScriptedEngine
) -> None:
    app.server.start(wide=False)
    qtbot.waitUntil(lambda: app.server.runs)
    engine.pause_at = 2
    first, second = (Caller(app.server.state.address) for _ in range(2))
    qtbot.waitUntil(lambda: engine.paused and len(app.server.state.activity.live) == 2)
    app.window.composer.submitted.emit("Mine?")
    app.session.stop()
    engine.gate.set()
    qtbot.waitUntil(lambda: not first.is_alive() and not second.is_alive() and not app.session.state.busy)
    assert [caller.answer[0] for caller in (first, second)] == [200, 200]
    assert [request.messages[-1].content for request in engine.requests] == ["Who are you?", "Mine?", "Who are you?"]


def test_closing_the_window_ends_the_server_and_its_replies(
    qtbot: QtBot, app: Application, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.server.server.CLOSING_S", 60)  # a busy machine says why it hangs up, too
    app.server.start(wide=False)
    qtbot.waitUntil(lambda: app.server.runs)
    engine.pause_at = 2
    caller = Caller(app.server.state.address)
    qtbot.waitUntil(lambda: len(engine.requests) == 1)
    app.close()
    caller.join(120)
    assert caller.answer[0] == 503


def test_closing_the_window_ends_a_server_that_it_has_not_heard_of(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()

    class Told(Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.set()

    monkeypatch.setattr("core.server.server.Server", Told)
    app.server.start(wide=False)
    assert started.wait(120)
    app.close()
    assert "server" not in {thread.name for thread in threading.enumerate()}
