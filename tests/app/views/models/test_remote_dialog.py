"""The page of remote models, against a server on loopback: each step is shown, and a model is chosen from its list."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.controllers.remote import RemoteController
from app.engine.app_state import State, host_of, name_of
from app.settings.theme import Theme
from app.views.frame.top_bar import TopBar
from app.views.models.remote_dialog import DONE, FAILED, RemoteDialog
from core.events import Loaded
from core.remote.endpoint import PRESETS
from tests.core.remote.test_remote import fake


def opened(qtbot: QtBot, theme: Theme) -> tuple[RemoteController, RemoteDialog]:
    controller = RemoteController(theme, None)  # type: ignore[arg-type]
    controller.open()
    (dialog,) = [one for one in QApplication.topLevelWidgets() if isinstance(one, RemoteDialog) and one.isVisible()]
    qtbot.addWidget(dialog)
    return controller, dialog


def test_a_server_is_tested_and_its_model_chosen_by_keyboard(qtbot: QtBot) -> None:
    with fake() as (url, _):
        controller, dialog = opened(qtbot, Theme("light"))
        chosen: list[str] = []
        controller.chosen.connect(chosen.append)
        qtbot.keyClicks(dialog.address, url.removesuffix("/v1"))
        qtbot.mouseClick(dialog.test, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda: dialog.model.currentText() == "big/model")
        qtbot.waitUntil(dialog.test.isEnabled)
        assert FAILED not in dialog.steps.text()
        assert dialog.steps.text().count(DONE) == 7
        assert not dialog.error.isVisible()
        qtbot.keyClick(dialog, Qt.Key.Key_Return)
        assert chosen == [f"remote:{url}#big/model"]
        assert (name_of(chosen[0]), host_of(chosen[0])) == ("big/model", "127.0.0.1")
        controller.close()


def test_the_step_that_fails_is_named_with_what_to_do(qtbot: QtBot) -> None:
    with fake(key="right") as (url, _):
        controller, dialog = opened(qtbot, Theme("dark"))
        dialog.address.setText(url)
        dialog.key.setText("wrong")
        dialog.test.click()
        qtbot.waitUntil(lambda: FAILED in dialog.steps.text())
        assert "refuses the key" in dialog.error.text()
        dialog.key.setText("right")
        qtbot.waitUntil(dialog.test.isEnabled)
        dialog.test.click()
        qtbot.waitUntil(lambda: dialog.model.currentText() == "big/model")
        controller.close()


def test_programs_of_this_computer_fill_the_address_in(qtbot: QtBot) -> None:
    controller, dialog = opened(qtbot, Theme("light"))
    assert not dialog.connect_button.isEnabled()
    dialog.presets.activated.emit(1 + list(PRESETS).index("Ollama"))
    assert dialog.address.text() == PRESETS["Ollama"]
    assert dialog.connect_button.isEnabled()
    controller.close()


def test_a_remote_model_shows_whose_computer_answers(qtbot: QtBot) -> None:
    bar = TopBar(Theme("light"))
    qtbot.addWidget(bar)
    model = Loaded("big/model", "remote", "remote", 4096, 0, 0, 0.0)
    bar.show_state(State("ready", "remote:http://box.lan:8000/v1#big/model", model=model))
    assert "box.lan" in bar.model.accessibleName() + bar.model.toolTip()
