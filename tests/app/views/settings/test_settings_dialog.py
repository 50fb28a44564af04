from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QAccessible, QGuiApplication
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QStackedWidget,
)
from pytestqt.qtbot import QtBot

from app.about.diagnostics import diagnostics, tail, without_home
from app.about.network_access import ACCESSES
from app.i18n.translator import install
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from app.settings.settings import Problem, Settings, declared, objection
from app.settings.theme import RELATED, Theme
from app.views.controls.inputs import ARROW_ROOM, ChoiceBox
from app.views.controls.scroll_pane import ScrollPane
from app.views.settings.settings_dialog import SettingsDialog
from app.views.settings.settings_pages import LogPage
from core.sentence import sentence
from tests.app.find import find


@pytest.fixture
def dialog(qtbot: QtBot, tmp_path: Path) -> SettingsDialog:
    (tmp_path / "app.log").write_text("first line\nlast line\n", "utf-8")
    folders = [("Conversations", tmp_path / "data")]
    made = SettingsDialog(Theme("light"), Settings(), folders, tmp_path / "app.log", lambda: "the diagnosis")
    qtbot.addWidget(made)
    made.show()
    qtbot.waitExposed(made)
    for row in range(made.pages.count()):
        made.pages.setCurrentRow(row)
    made.pages.setCurrentRow(0)
    return made


@pytest.mark.parametrize("language", ["de", "en"])
def test_every_choice_can_be_read_whole(language: str, qapp: QApplication, qtbot: QtBot, tmp_path: Path) -> None:
    words = install(language)
    try:
        dialog = SettingsDialog(Theme("light"), Settings(), [], tmp_path / "app.log", str)
        qtbot.addWidget(dialog)
        for row in range(dialog.pages.count()):
            dialog.pages.setCurrentRow(row)
        boxes = dialog.findChildren(ChoiceBox)
        assert len(boxes) > 5
        for box in boxes:
            room = box.maximumWidth() - ARROW_ROOM - 2 * RELATED
            texts = [box.itemText(place) for place in range(box.count())]
            assert max(map(box.fontMetrics().horizontalAdvance, texts)) <= room, texts
        for line in dialog.findChildren(QLineEdit):
            words_inside = line.placeholderText()
            assert line.fontMetrics().horizontalAdvance(words_inside) <= line.width() - 2 * RELATED, words_inside
    finally:
        qapp.removeTranslator(words)


def choose(dialog: SettingsDialog, name: str, value: object) -> None:
    box = dialog.fields[name].control
    assert isinstance(box, QComboBox)
    box.setCurrentIndex(box.findData(value))


def write(dialog: SettingsDialog, qtbot: QtBot, name: str, text: str) -> None:
    """Type like a user: select all, type, press Enter."""
    line = dialog.fields[name].control
    assert isinstance(line, QLineEdit)
    line.selectAll()
    if text:
        qtbot.keyClicks(line, text)
    else:
        qtbot.keyClick(line, Qt.Key.Key_Delete)
    qtbot.keyClick(line, Qt.Key.Key_Return)


def test_there_is_a_field_for_every_setting_and_it_shows_the_value(dialog: SettingsDialog) -> None:
    assert list(dialog.fields) == [entry.name for entry in fields(Settings)]
    changed = replace(
        Settings(), theme="dark", font_percent=120, enter_sends=False, system_prompt="Be kind.", temperature=0.7,
        context=4096, hf_endpoint="https://mirror.example",
    )  # fmt: skip
    dialog.show_settings(changed)
    controls = {name: field.control for name, field in dialog.fields.items()}
    assert controls["theme"].currentData() == "dark"  # type: ignore[attr-defined]
    assert controls["font_percent"].currentText() == "120 %"  # type: ignore[attr-defined]
    assert not controls["enter_sends"].isChecked()  # type: ignore[attr-defined]
    assert controls["system_prompt"].toPlainText() == "Be kind."  # type: ignore[attr-defined]
    texts = {name: line.text() for name, line in controls.items() if isinstance(line, QLineEdit)}
    assert (texts["temperature"], texts["context"], texts["threads"]) == ("0.7", "4096", "")
    draft = controls["draft_model"]
    assert isinstance(draft, QLineEdit)
    assert draft.placeholderText() == "e.g. Qwen/Qwen3-0.6B"


def test_fields_begin_below_each_other_and_paths_at_the_edge(dialog: SettingsDialog) -> None:
    dialog.pages.setCurrentRow(4)  # models and network
    dialog.show()
    rows = [field for field in dialog.fields.values() if field.isVisible()]
    places = {
        field.name: field.control.mapTo(field, QPoint()).x()
        for field in rows
        if isinstance(field.control, QComboBox | QLineEdit)
    }
    assert places.pop("models_folder") == 0
    assert len(places) > 1
    assert len(set(places.values())) == 1


def test_showing_settings_changes_nothing(dialog: SettingsDialog, qtbot: QtBot) -> None:
    with qtbot.assertNotEmitted(dialog.changed, wait=600):
        dialog.show_settings(replace(Settings(), theme="dark", system_prompt="x", temperature=0.3, enter_sends=False))


def test_every_kind_of_control_applies_at_once(dialog: SettingsDialog, qtbot: QtBot) -> None:
    said: list[tuple[str, object]] = []
    dialog.changed.connect(lambda settings, name: said.append((name, getattr(settings, name))))
    choose(dialog, "theme", "dark")
    choose(dialog, "font_percent", 160)
    qtbot.mouseClick(dialog.fields["enter_sends"].control, Qt.MouseButton.LeftButton, pos=dialog.rect().topLeft())
    write(dialog, qtbot, "threads", "6")
    write(dialog, qtbot, "vram_limit_gib", "5,5")
    write(dialog, qtbot, "context", "32 768")
    write(dialog, qtbot, "hf_endpoint", " https://mirror.example ")
    assert said == [
        ("theme", "dark"), ("font_percent", 160), ("enter_sends", False), ("threads", 6), ("vram_limit_gib", 5.5),
        ("context", 32768), ("hf_endpoint", "https://mirror.example"),
    ]  # fmt: skip
    assert dialog.settings == replace(
        Settings(), theme="dark", font_percent=160, enter_sends=False, threads=6, vram_limit_gib=5.5, context=32768,
        hf_endpoint="https://mirror.example",
    )  # fmt: skip


def test_typing_is_taken_when_it_pauses(dialog: SettingsDialog, qtbot: QtBot) -> None:
    box = dialog.fields["system_prompt"].control
    assert isinstance(box, QPlainTextEdit)
    with qtbot.waitSignal(dialog.changed) as signal:
        qtbot.keyClicks(box, "Be brief.")
    assert signal.args is not None
    assert signal.args[0].system_prompt == "Be brief."


def test_what_was_typed_last_is_taken_when_the_dialog_closes(dialog: SettingsDialog, qtbot: QtBot) -> None:
    qtbot.keyClicks(dialog.fields["system_prompt"].control, "Be brief.")
    dialog.close()
    assert dialog.settings.system_prompt == "Be brief."


def test_an_emptied_field_is_left_to_the_program_again(dialog: SettingsDialog, qtbot: QtBot) -> None:
    dialog.show_settings(replace(Settings(), threads=4))
    write(dialog, qtbot, "threads", "")
    assert dialog.settings.threads is None


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("context", "10", "Context must be between 256 and 1,048,576 tokens."),
        ("threads", "2.5", 'CPU threads cannot be "2.5".'),
        ("threads", "2,5", 'CPU threads cannot be "2,5".'),
        ("context", "81.92", 'Context cannot be "81.92".'),
        ("context", "1,024.576", 'Context cannot be "1,024.576".'),
        ("context", "1024.576", 'Context cannot be "1024.576".'),
        ("context", "8 19", 'Context cannot be "8 19".'),
        ("temperature", "hot", 'Temperature cannot be "hot".'),
        ("temperature", "-1", "Temperature must be between 0 and 2."),
        ("hf_endpoint", "mirror", "Hub address must be a web address that begins with https:// or http://."),
    ],
)
def test_what_is_invalid_is_said_in_place_and_goes_nowhere(
    dialog: SettingsDialog, qtbot: QtBot, name: str, text: str, sentence: str
) -> None:
    dialog.show_settings(replace(Settings(), sampling_preset="custom"))
    with qtbot.assertNotEmitted(dialog.changed, wait=500):
        write(dialog, qtbot, name, text)
    assert dialog.fields[name].error == sentence
    dialog.show_settings(dialog.settings)
    assert dialog.fields[name].error == ""


def test_what_is_invalid_is_said_in_german(dialog: SettingsDialog, qapp: QApplication, qtbot: QtBot) -> None:
    words = install("de")
    try:
        write(dialog, qtbot, "context", "10")
        assert dialog.fields["context"].error == "Kontext muss zwischen 256 und 1.048.576 Tokens liegen."
        dialog.show_problems([Problem("theme", sentence("{} The default is used.", objection("theme", "pink")))])
        assert find(dialog, QLabel, "problems").text() == "Farbschema kann nicht 'pink' sein. Es gilt die Vorgabe."
    finally:
        qapp.removeTranslator(words)


@pytest.mark.parametrize("text", ["1048576", "1,048,576", "1.048.576", "1 048 576", "1_048_576", "1\u202f048\u202f576"])
def test_whole_numbers_may_have_separators_between_groups_of_three(
    dialog: SettingsDialog, qtbot: QtBot, text: str
) -> None:
    line = dialog.fields["context"].control
    assert isinstance(line, QLineEdit)
    QGuiApplication.clipboard().setText(text)
    line.paste()
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert dialog.settings.context == 1_048_576


def test_single_sampling_values_need_the_custom_preset(dialog: SettingsDialog) -> None:
    assert not dialog.fields["temperature"].isEnabled()
    choose(dialog, "sampling_preset", "custom")
    assert dialog.fields["temperature"].isEnabled()
    choose(dialog, "sampling_preset", "precise")
    assert not dialog.fields["temperature"].isEnabled()


def test_a_stored_value_between_the_steps_is_shown(dialog: SettingsDialog) -> None:
    dialog.show_settings(replace(Settings(), font_percent=95))
    box = dialog.fields["font_percent"].control
    assert isinstance(box, QComboBox)
    assert box.currentData() == 95


def test_problems_of_the_stored_file_are_shown(dialog: SettingsDialog) -> None:
    dialog.show_problems([Problem("theme", "Theme cannot be pink.")])
    assert find(dialog, QLabel, "problems").isVisible()
    assert "pink" in find(dialog, QLabel, "problems").text()


def test_folders_can_be_opened_and_the_log_read(dialog: SettingsDialog, qtbot: QtBot, tmp_path: Path) -> None:
    dialog.show_page("Data folders")
    button = next(b for b in dialog.findChildren(QPushButton) if b.accessibleName() == "Open: Conversations")
    with qtbot.waitSignal(dialog.open_requested) as signal:
        button.click()
    assert signal.args == [str(tmp_path / "data")]
    dialog.show_page("Log")
    page = dialog.findChild(LogPage)
    assert isinstance(page, LogPage)
    assert page.text.toPlainText() == "first line\nlast line"
    find(page, QPushButton, "Copy diagnostics").click()
    assert QGuiApplication.clipboard().text() == "the diagnosis"


def test_the_online_page_lists_every_access(dialog: SettingsDialog) -> None:
    dialog.show_page("What goes online")
    shown = " ".join(label.text() for label in dialog.findChildren(QLabel))
    assert "There is no telemetry" in shown
    for access in ACCESSES:
        assert access.what in shown
        assert access.sent in shown


def test_the_keyboard_scrolls_the_online_page(dialog: SettingsDialog, qtbot: QtBot) -> None:
    dialog.show_page("What goes online")
    dialog.activateWindow()
    qtbot.waitUntil(dialog.isActiveWindow)
    dialog.pages.setFocus()
    qtbot.keyClick(dialog.pages, Qt.Key.Key_Tab)
    area = find(dialog, QStackedWidget, "pages").currentWidget()
    assert isinstance(area, ScrollPane)
    assert area.hasFocus()
    qtbot.keyClick(area, Qt.Key.Key_PageDown)
    assert area.verticalScrollBar().value() > 0


def test_the_keyboard_reaches_everything_and_everything_has_a_name(dialog: SettingsDialog, qtbot: QtBot) -> None:
    for name, field in dialog.fields.items():
        assert field.control.focusPolicy() & Qt.FocusPolicy.TabFocus, name
        assert QAccessible.queryAccessibleInterface(field.control).text(QAccessible.Text.Name), name
    for button in dialog.findChildren(QAbstractButton):
        assert button.text() or button.accessibleName()
    dialog.pages.setFocus()
    qtbot.keyClick(dialog.pages, Qt.Key.Key_Down)
    assert find(dialog, QStackedWidget, "pages").currentIndex() == 1


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_page_paints_in_every_size_without_scrolling_sideways(qtbot: QtBot, mode: str, tmp_path: Path) -> None:
    theme = Theme(mode, 160)  # type: ignore[arg-type]
    dialog = SettingsDialog(theme, Settings(), [("Conversations", tmp_path)], tmp_path / "none.log", str)
    qtbot.addWidget(dialog)
    dialog.show()
    for row in range(dialog.pages.count()):
        dialog.pages.setCurrentRow(row)
        assert not dialog.grab().isNull()
        assert find(dialog, QStackedWidget, "pages").currentWidget().horizontalScrollBar().maximum() == 0, (
            dialog.pages.item(row).text()
        )  # type: ignore[union-attr]


def test_diagnostics_tell_the_machine_and_no_secrets(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(f"opened {Path.home() / 'models'}\n" * 500, "utf-8")
    settings = replace(Settings(), system_prompt="My secret plan", models_folder="/mnt/anna", theme="dark")
    card = GpuSample(0, "Card", vram_total=8 << 30)
    text = diagnostics(
        settings, Sample(0, ram_total=16 << 30, ram_available=8 << 30, gpus=(card,)), log, {"Model": "tiny"}
    )
    for told in (
        "HeteGen",
        "torch",
        "RAM 16.0 GB",
        "Card: n/a of 8.0 GB",
        "Model: tiny",
        "theme: dark",
        "models_folder: (set)",
    ):
        assert told in text
    for secret in ("secret plan", "anna", str(Path.home())):
        assert secret not in text
    assert len(text.splitlines()) < 150


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log", 5) == []
    (tmp_path / "a.log").write_bytes(b"one\ntwo\n\xff\xfe\n")
    assert tail(tmp_path / "a.log", 2) == ["two", "\ufffd\ufffd"]
    assert without_home(f"{Path.home()}/x") == "~/x"


def test_words_of_numbers_are_readable() -> None:
    for name, entry in declared().items():
        if entry.high is not None:
            assert entry.low is not None, name
