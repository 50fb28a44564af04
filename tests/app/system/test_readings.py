"""KV caches on disk: only if the user enables them, shown with their size, and deleted with their conversation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytestqt.qtbot import QtBot

from app.application import Application, StartOptions
from app.conversations.chat_model import ChatModel
from app.conversations.library import Library
from app.settings.settings import with_value
from app.system import readings
from app.system.paths import places
from app.views.settings.settings_pages import FoldersPage
from core.paths import kept_reading
from tests.app.scripted_engine import ScriptedEngine


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def app(qtbot: QtBot, engine: ScriptedEngine) -> Iterator[Application]:
    made = Application(StartOptions("somebody/model"), lambda: engine)
    qtbot.addWidget(made.window)
    made.window.show()
    qtbot.waitUntil(lambda: made.session.state.phase == "ready")
    yield made
    made.window.close()
    made.close()


def ask(app: Application, qtbot: QtBot) -> str:
    app.session.submit("Hello?")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    return app.chat.conversation.id


def keep(conversation: str) -> None:
    kept_reading(conversation).parent.mkdir(parents=True, exist_ok=True)
    kept_reading(conversation).write_bytes(bytes(2_000_000))


def test_the_engine_is_told_which_conversation_it_is_only_by_choice(
    app: Application, engine: ScriptedEngine, qtbot: QtBot
) -> None:
    ask(app, qtbot)
    assert engine.requests[-1].conversation == ""
    app.preferences.settings = with_value(app.preferences.settings, "keep_readings", True)
    id = ask(app, qtbot)
    assert engine.requests[-1].conversation == id


def test_it_goes_with_its_conversation(app: Application, qtbot: QtBot) -> None:
    id = ask(app, qtbot)
    keep(id)
    app.library.delete(id)
    assert not kept_reading(id).exists()


def test_at_the_end_nothing_is_left_of_unknown_conversations(app: Application, qtbot: QtBot) -> None:
    id = ask(app, qtbot)
    keep(id)
    keep("deleted while it was written")
    app.close()
    assert kept_reading(id).exists()
    assert readings.nbytes() == 2_000_000


def test_a_second_window_leaves_what_the_first_ones_conversations_have(app: Application, qtbot: QtBot) -> None:
    id = ask(app, qtbot)
    keep(id)
    second = Library(places().conversations, ChatModel(), str)
    assert second.latest() == ""
    second.close()
    assert kept_reading(id).exists()


def test_the_settings_show_its_size_and_delete_it(app: Application, qtbot: QtBot) -> None:
    keep("one")
    app.commands.act("settings")
    dialog = app.preferences.open(app.theme, str, app.window)
    dialog.show_page("Data folders")
    page = dialog.findChild(FoldersPage)
    assert page is not None
    assert page.kept.text() == "2 MB"
    page.remove.click()
    assert page.kept.text() == "Nothing is kept."
    assert not page.remove.isEnabled()
    assert readings.nbytes() == 0
    dialog.close()
