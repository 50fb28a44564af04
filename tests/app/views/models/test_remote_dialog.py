"""The page of remote models, against a server on loopback: each step is shown, and a model is chosen from its list."""

from __future__ import annotations

import threading

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.controllers.remote import RemoteController
from app.engine.app_state import State, host_of, name_of
from app.settings.theme import Theme
from app.system.paths import places
from app.views.frame.top_bar import TopBar
from app.views.models.remote_dialog import DONE, FAILED, RemoteDialog
from core.events import Loaded
from core.remote.endpoint import PRESETS
from core.remote.saved import SavedEndpoint, read_saved
from tests.core.keyring_in_memory import Ring
from tests.core.remote.test_remote import fake


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    ring = Ring()
    monkeypatch.setattr("app.controllers.remote.system_keyring", lambda: ring)
    return ring


def opened(qtbot: QtBot, theme: Theme) -> tuple[RemoteController, RemoteDialog]:
    controller = RemoteController(theme, places().config / "servers.json", None)  # type: ignore[arg-type]
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
        dialog.test.setFocus()
        qtbot.keyClick(dialog.test, Qt.Key.Key_Return)
        qtbot.waitUntil(lambda: dialog.model.currentText() == "big/model")
        qtbot.waitUntil(dialog.test.isEnabled)
        assert FAILED not in dialog.steps.text()
        assert dialog.steps.text().count(DONE) == 7
        assert not dialog.error.isVisible()
        assert dialog.focusWidget() is dialog.model
        qtbot.keyClick(dialog.model, Qt.Key.Key_Return)
        qtbot.waitUntil(lambda: chosen == [f"remote:{url}#big/model"])
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
        assert f"{FAILED}  The key is refused" in dialog.steps.text()
        dialog.key.setText("right")
        qtbot.waitUntil(dialog.test.isEnabled)
        dialog.test.click()
        qtbot.waitUntil(lambda: dialog.model.currentText() == "big/model")
        controller.close()


def test_tab_goes_from_the_servers_to_the_form_and_skips_an_empty_list(qtbot: QtBot) -> None:
    controller, dialog = opened(qtbot, Theme("light"))
    dialog.activateWindow()
    qtbot.waitUntil(dialog.address.hasFocus)
    assert not dialog.list.isEnabled()
    dialog.address.setText("box.lan:8000")
    dialog.save.click()
    qtbot.waitUntil(dialog.list.isEnabled)
    dialog.list.setFocus(Qt.FocusReason.TabFocusReason)
    for following in (dialog.add, dialog.name, dialog.address):
        qtbot.keyClick(dialog.focusWidget(), Qt.Key.Key_Tab)
        assert dialog.focusWidget() is following
    controller.close()


def test_servers_are_kept_changed_and_forgotten_with_their_keys(qtbot: QtBot, ring: Ring) -> None:
    controller, dialog = opened(qtbot, Theme("light"))
    for name, address, key in (("Box", "box.lan:8000", "sk-1"), ("", "http://127.0.0.1:1234/v1", "")):
        dialog.add.click()
        dialog.name.setText(name)
        dialog.address.setText(address)
        dialog.key.setText(key)
        dialog.save.click()
    qtbot.waitUntil(lambda: list(ring.kept.values()) == ["sk-1"])
    assert [dialog.list.item(row).text() for row in range(2)] == ["Box", "127.0.0.1:1234"]
    dialog.list.setCurrentRow(0)
    assert (dialog.address.text(), dialog.key.text()) == ("box.lan:8000", "")
    dialog.name.setText("Big box")
    dialog.model.setCurrentText("big/model")
    dialog.save.click()
    assert [one.name for one in read_saved(places().config / "servers.json")] == ["Big box", "127.0.0.1:1234"]
    controller.close()
    dialog.close()
    controller, dialog = opened(qtbot, Theme("light"))
    dialog.list.setCurrentRow(0)
    assert dialog.model.currentText() == "big/model"
    assert "sk-1" not in (places().config / "servers.json").read_text("utf-8")
    dialog.remove.click()
    qtbot.waitUntil(lambda: not ring.kept)
    assert [one.name for one in controller.state.saved] == ["127.0.0.1:1234"]
    controller.close()


def test_the_key_of_an_address_that_changed_is_forgotten(qtbot: QtBot, ring: Ring) -> None:
    controller, dialog = opened(qtbot, Theme("light"))
    dialog.add.click()
    dialog.name.setText("Box")

    def save(address: str, key: str) -> None:
        dialog.address.setText(address)
        dialog.key.setText(key)
        dialog.save.click()
        qtbot.waitUntil(lambda: list(ring.kept.values()) == [key])

    save("box.lan:8000", "sk-1")
    save("box.lan:9000", "sk-2")
    controller.close()


def test_a_model_is_loaded_only_once_its_key_is_kept(qtbot: QtBot, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, keep = threading.Event(), ring.set_password

    def keep_slowly(service: str, name: str, password: str) -> None:
        slow.wait(30)
        keep(service, name, password)

    monkeypatch.setattr(ring, "set_password", keep_slowly)
    controller, dialog = opened(qtbot, Theme("light"))
    dialog.address.setText("http://127.0.0.1:9/v1")
    dialog.key.setText("sk-1")
    known: list[list[str]] = []
    controller.chosen.connect(lambda source: known.append(list(ring.kept.values())))
    dialog.connect_button.click()
    controller.test("127.0.0.1:9", "")  # testing another server does not drop the key
    qtbot.waitUntil(lambda: bool(controller.state.outcomes))
    assert not known
    slow.set()
    qtbot.waitUntil(lambda: known == [["sk-1"]])
    controller.close()


def test_every_key_that_was_entered_is_kept_when_the_window_closes(
    qtbot: QtBot, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, unlocked, keep = threading.Event(), threading.Event(), ring.set_password

    def keep_once_unlocked(service: str, name: str, password: str) -> None:
        asked.set()
        assert unlocked.wait(60)
        keep(service, name, password)

    monkeypatch.setattr(ring, "set_password", keep_once_unlocked)
    controller, _ = opened(qtbot, Theme("light"))
    controller.save(SavedEndpoint("Box", "box.lan:8000"), "sk-1", "")
    controller.save(SavedEndpoint("Other box", "box.lan:9000"), "sk-2", "")
    assert asked.wait(60)
    threading.Timer(0.5, unlocked.set).start()  # while `close` waits for the thread
    controller.close()
    assert list(ring.kept.values()) == ["sk-1", "sk-2"]


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
