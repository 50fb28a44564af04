"""The page of tool servers: entering, pasting, switching and allowing; keys are never shown."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLineEdit, QPushButton
from pytestqt.qtbot import QtBot

from app.settings.theme import Theme
from app.views.tools import server_form
from app.views.tools.server_form import DOTS, PasteForm, ServerForm, entered_keys, split_command, written
from app.views.tools.tools_dialog import ToolsDialog
from core.errors import BadRequest
from core.tools.server import ToolServer
from tests.app.find import find
from tests.app.tool_screenshots import FILES, STATE, WEB


def opened(qtbot: QtBot) -> ToolsDialog:
    dialog = ToolsDialog(Theme("light"), STATE)
    qtbot.addWidget(dialog)
    dialog.show()
    dialog.list.setCurrentRow(0)
    return dialog


def test_each_server_shows_its_tools_its_error_and_its_log(qtbot: QtBot) -> None:
    dialog = opened(qtbot)
    assert list(dialog.page.choices) == ["read_file", "write_file", "search_notes"]
    assert [box.currentIndex() for box in dialog.page.choices.values()] == [1, 2, 0]
    assert "→ read_file" in dialog.page.log.toPlainText()
    dialog.list.setCurrentRow(1)
    assert "All connection attempts failed" in dialog.page.error.text()
    assert not dialog.page.choices
    dialog.list.setCurrentRow(2)
    assert not dialog.page.on.isChecked()


def test_what_is_pressed_is_wished(qtbot: QtBot) -> None:
    dialog = opened(qtbot)
    wishes: list[tuple[object, ...]] = []
    dialog.permit_wished.connect(lambda *said: wishes.append(said))
    dialog.switch_wished.connect(lambda *said: wishes.append(said))
    dialog.test_wished.connect(lambda *said: wishes.append(said))
    dialog.remove_wished.connect(lambda *said: wishes.append(said))
    dialog.page.choices["search_notes"].activated.emit(1)
    dialog.page.on.click()
    dialog.page.tested.emit()
    dialog.page.removed.emit()
    assert wishes == [("notes", "search_notes", "always"), ("notes", False), ("notes",), ("notes",)]


def test_a_server_is_entered_and_another_edited_without_its_key_being_shown(qtbot: QtBot) -> None:
    made: list[ToolServer] = []
    form = ServerForm(Theme("dark"), None, {"search"})
    qtbot.addWidget(form)
    form.entered.connect(made.append)
    form.save.click()
    assert "needs a name" in form.error.text()
    form.name.setText("disk")
    form.command.setText('npx -y server "/my notes"')
    form.keys.setPlainText("TOKEN=abc=d")
    form.save.click()
    assert made == [ToolServer("disk", "npx", ("-y", "server", "/my notes"), {"TOKEN": "abc=d"})]
    form = ServerForm(Theme("light"), WEB, set())
    qtbot.addWidget(form)
    form.entered.connect(made.append)
    assert form.keys.toPlainText() == f"Authorization={DOTS}"
    form.url.setText("http://127.0.0.1:9/mcp")
    form.save.click()
    assert (made[1].url, made[1].headers) == ("http://127.0.0.1:9/mcp", WEB.headers)


def test_enter_presses_the_button_with_the_focus_and_in_a_field_the_default_one(qtbot: QtBot) -> None:
    form = ServerForm(Theme("light"), WEB, set())
    qtbot.addWidget(form)
    form.show()
    cancel, field = find(form, QPushButton, "Cancel"), form.findChildren(QLineEdit)[0]
    cancel.setFocus()
    with qtbot.assertNotEmitted(form.entered), qtbot.waitSignal(form.rejected):
        QTest.keyClick(cancel, Qt.Key.Key_Return)
    form.show()
    field.setFocus()
    with qtbot.waitSignal(form.entered):
        QTest.keyClick(field, Qt.Key.Key_Return)


def test_pasted_servers_are_added_and_what_is_wrong_is_said(qtbot: QtBot) -> None:
    dialog = opened(qtbot)
    put: list[ToolServer] = []
    dialog.put_wished.connect(lambda server, former: put.append(server))
    dialog.paste.click()
    form = next(one for one in QApplication.topLevelWidgets() if isinstance(one, PasteForm) and one.isVisible())
    form.text.setPlainText("{")
    form.save.click()
    assert "not JSON" in form.error.text()
    form.text.setPlainText('{"mcpServers": {"a": {"command": "x"}, "b": {"url": "http://localhost:1/"}}}')
    form.save.click()
    assert [(server.name, server.command, server.url) for server in put] == [
        ("a", "x", ""),
        ("b", "", "http://localhost:1/"),
    ]


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        ("run", "plain", "two words", ""),
        (r"C:\Program Files\nodejs\npx.cmd", "C:\\", "C:\\My Notes\\", r"\\server\share", "O'Brien"),
        ("uvx", '{"root": "C:\\\\notes"}', '"', '\\"', 'a"b c\\"', "--header=Authorization: Bearer x", "new\nline"),
    ],
)
def test_a_command_is_read_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, windows: bool, parts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(server_form, "WINDOWS", windows)
    assert split_command(written(ToolServer("x", parts[0], parts[1:]))) == list(parts)


def test_a_command_for_windows_is_typed_as_in_its_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_form, "WINDOWS", True)
    typed = r"""  "C:\Program Files\x.exe" --dir="C:\My Notes" it's  C:\a\b """
    assert split_command(typed) == [r"C:\Program Files\x.exe", r"--dir=C:\My Notes", "it's", r"C:\a\b"]
    assert split_command("  ") == []
    with pytest.raises(BadRequest, match="quotation mark is missing"):
        split_command('run "C:\\My Notes')


def test_a_command_is_written_as_it_is_read_and_kept_keys_stay() -> None:
    server = ToolServer("x", "run", ("plain", "two words", ""))
    assert split_command(written(server)) == ["run", "plain", "two words", ""]
    assert split_command(written(FILES)) == [FILES.command, *FILES.args]
    assert entered_keys(f"A={DOTS}\n\nB = 1\n", {"A": "kept", "C": "gone"}) == {"A": "kept", "B": "1"}
