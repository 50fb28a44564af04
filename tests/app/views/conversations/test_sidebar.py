from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QLocale, QPoint, Qt, QTimer
from PySide6.QtGui import QAccessible
from PySide6.QtWidgets import QApplication, QLabel, QLineEdit, QPushButton, QWidget
from pytestqt.qtbot import QtBot

from app.conversations.conversation import Conversation, Turn
from app.conversations.store import MARK_END, MARK_START, Entry, Hit, Store
from app.i18n.translator import install, locale
from app.settings.theme import Theme
from app.views.controls.controls import ElidedLabel, IconButton
from app.views.conversations.entry_list import DAY_S, groups, runs
from app.views.conversations.sidebar import Sidebar
from app.views.conversations.undo_bar import UndoBar
from tests.app.find import find

NOON = time.mktime((2026, 11, 20, 12, 0, 0, 0, 0, -1))


def entry(name: str, age_s: float = 0.0, pinned: bool = False, title: str | None = None) -> Entry:
    moment = time.time() - age_s
    return Entry(name, name.title() if title is None else title, pinned, moment, moment, {})


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is of today stays so during a test."""
    monkeypatch.setattr(time, "time", lambda: NOON)


@pytest.fixture
def sidebar(qtbot: QtBot) -> Sidebar:
    made = Sidebar(Theme("light"))
    qtbot.addWidget(made)
    made.resize(260, 600)
    made.show_entries([entry("alpha", pinned=True), entry("beta"), entry("gamma", 30 * DAY_S)])
    made.show()
    qtbot.waitExposed(made)
    return made


@pytest.fixture(params=["en", "de"])
def language(request: pytest.FixtureRequest, qtbot: QtBot) -> Iterator[str]:
    install(request.param)
    yield request.param
    install("en")


def shown(sidebar: Sidebar) -> list[str]:
    model = sidebar.list.model()
    return [str(model.index(row, 0).data()) for row in range(model.rowCount())]


def select(sidebar: Sidebar, words: str) -> None:
    sidebar.list.setFocus()
    sidebar.list.setCurrentIndex(sidebar.list.model().index(shown(sidebar).index(words), 0))


def test_groups_are_by_age_and_every_entry_is_in_one() -> None:
    ages = {
        "now": 0,
        "night": 11.9 * 3600,
        "late": 12.1 * 3600,
        "days": 3 * DAY_S,
        "week": 6.4 * DAY_S,
        "old": 9 * DAY_S,
    }
    entries = [replace(entry(name), updated=NOON - age) for name, age in ages.items()]
    entries.append(replace(entry("pin", pinned=True), updated=NOON - 99 * DAY_S))
    found = {heading: [item.id for item in members] for heading, members in groups(entries, NOON)}
    assert found == {
        "Pinned": ["pin"], "Today": ["now", "night"], "Yesterday": ["late"], "Last 7 days": ["days", "week"],
        "Earlier": ["old"],
    }  # fmt: skip


def test_a_snippet_is_cut_into_plain_and_found_pieces() -> None:
    assert runs(f"{MARK_START}sky{MARK_END} & <b>") == [("sky", True), (" & <b>", False)]
    pieces = runs("x" * 100 + f" the {MARK_START}sky{MARK_END}")
    assert len(pieces[0][0]) < 20
    assert pieces[1] == ("sky", True)
    assert runs("") == []
    link = f"More[^1] in [the {MARK_START}paper{MARK_END}](https://example.org/1) and ![it](https://exam"
    assert runs(link) == [("More in the ", False), ("paper", True), (" and it", False)]
    table = f"## Rivers\n\n| name | km |\n|:---|---:|\n| **{MARK_START}Nile{MARK_END}** | 6650 - 6670 |"
    assert runs(table) == [(" Rivers name km ", False), ("Nile", True), (" 6650 - 6670 ", False)]


def test_the_list_shows_headings_and_titles(sidebar: Sidebar) -> None:
    assert shown(sidebar) == ["Pinned", "Alpha", "Today", "Beta", "Earlier", "Gamma"]


def test_a_title_tells_when_it_was_written_in_the_windows_language(qtbot: QtBot, language: str) -> None:
    sidebar = Sidebar(Theme("light"))
    qtbot.addWidget(sidebar)
    sidebar.show_entries([replace(entry("alpha"), updated=NOON)])
    title, when = str(sidebar.list.model().index(1, 0).data(Qt.ItemDataRole.ToolTipRole)).splitlines()
    assert locale().language() == QLocale(language).language()
    read = locale().toDateTime(when, QLocale.FormatType.ShortFormat)
    assert (title, read.time().hour(), read.date().dayOfYear()) == ("Alpha", 12, 324)


def test_arrows_pass_over_headings_and_enter_opens(sidebar: Sidebar, qtbot: QtBot) -> None:
    select(sidebar, "Alpha")
    qtbot.keyClick(sidebar.list, Qt.Key.Key_Down)
    with qtbot.waitSignal(sidebar.opened) as signal:
        qtbot.keyClick(sidebar.list, Qt.Key.Key_Return)
    assert signal.args == ["beta", ""]


def test_a_click_opens_and_a_click_on_the_dots_opens_the_menu(sidebar: Sidebar, qtbot: QtBot) -> None:
    index = sidebar.list.model().index(shown(sidebar).index("Beta"), 0)
    box = sidebar.list.visualRect(index)
    with qtbot.waitSignal(sidebar.opened) as signal:
        qtbot.mouseClick(sidebar.list.viewport(), Qt.MouseButton.LeftButton, pos=box.center())
    assert signal.args == ["beta", ""]
    with qtbot.waitSignal(sidebar.list.menu_wished):
        qtbot.mouseClick(
            sidebar.list.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(box.right() - 14, box.center().y())
        )
    menu = QApplication.activePopupWidget()
    assert menu is not None
    menu.close()


def test_renaming_in_place_with_the_keyboard(sidebar: Sidebar, qtbot: QtBot) -> None:
    select(sidebar, "Beta")
    qtbot.keyClick(sidebar.list, Qt.Key.Key_F2)
    editor = sidebar.list.findChild(QLineEdit)
    assert isinstance(editor, QLineEdit)
    assert editor.text() == "Beta"
    editor.setText("  New \n name ")
    with qtbot.waitSignal(sidebar.renamed) as signal:
        qtbot.keyClick(editor, Qt.Key.Key_Return)
    assert signal.args == ["beta", "New name"]


def test_the_keyboard_stays_at_its_place_when_the_list_changes(sidebar: Sidebar, qtbot: QtBot) -> None:
    alpha, gamma = entry("alpha", pinned=True), entry("gamma", 30 * DAY_S)
    sidebar.renamed.connect(lambda name, title: sidebar.show_entries([alpha, entry(name, title=title), gamma]))
    sidebar.deleted.connect(lambda: sidebar.show_entries([alpha, gamma]))

    def at() -> str:
        return str(sidebar.list.currentIndex().data())

    select(sidebar, "Beta")
    qtbot.keyClick(sidebar.list, Qt.Key.Key_F2)
    editor = sidebar.list.findChild(QLineEdit)
    assert isinstance(editor, QLineEdit)
    editor.setText("Renamed")
    with qtbot.waitSignal(sidebar.renamed):
        qtbot.keyClick(editor, Qt.Key.Key_Return)
    assert (at(), sidebar.list.hasFocus()) == ("Renamed", True)
    with qtbot.waitSignal(sidebar.opened) as opened:
        qtbot.keyClick(sidebar.list, Qt.Key.Key_Return)
    assert opened.args == ["beta", ""]
    qtbot.keyClick(sidebar.list, Qt.Key.Key_Delete)
    assert at() in ("Alpha", "Gamma")


@pytest.mark.parametrize("text", ["", "   ", "Beta"])
def test_an_empty_or_unchanged_title_renames_nothing(sidebar: Sidebar, qtbot: QtBot, text: str) -> None:
    with qtbot.assertNotEmitted(sidebar.renamed):
        sidebar.list.model().setData(sidebar.list.model().index(3, 0), text)


def test_deleting_offers_undo_and_settles_when_the_next_is_deleted(sidebar: Sidebar, qtbot: QtBot) -> None:
    select(sidebar, "Beta")
    with qtbot.waitSignal(sidebar.deleted) as signal:
        qtbot.keyClick(sidebar.list, Qt.Key.Key_Delete)
    assert signal.args == ["beta"]
    assert sidebar.undo.isVisible()
    select(sidebar, "Gamma")
    with qtbot.waitSignal(sidebar.delete_expired) as settled:
        qtbot.keyClick(sidebar.list, Qt.Key.Key_Delete)
    assert settled.args == ["beta"]
    with qtbot.waitSignal(sidebar.undeleted) as undone, qtbot.assertNotEmitted(sidebar.delete_expired):
        find(sidebar.undo, QPushButton, "Undo").setFocus()
        qtbot.keyClick(find(sidebar.undo, QPushButton, "Undo"), Qt.Key.Key_Space)
    assert undone.args == ["gamma"]
    assert not sidebar.undo.isVisible()
    assert sidebar.focusWidget() is sidebar.list
    assert sidebar.list.currentIndex().data() == "Gamma"


def test_the_offer_to_undo_stays_under_the_keyboard_focus(sidebar: Sidebar, qtbot: QtBot) -> None:
    select(sidebar, "Beta")
    qtbot.keyClick(sidebar.list, Qt.Key.Key_Delete)
    (timer,) = sidebar.undo.findChildren(QTimer)
    find(sidebar.undo, QPushButton, "Undo").setFocus()
    timer.timeout.emit()
    assert sidebar.undo.isVisible()
    sidebar.list.setFocus()
    with qtbot.waitSignal(sidebar.delete_expired):
        timer.timeout.emit()
    assert not sidebar.undo.isVisible()


def test_a_long_title_is_cut_where_the_bar_ends_and_is_whole_in_the_tip(qtbot: QtBot, language: str) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    window.show()
    bar = UndoBar(Theme("light"), window)
    bar.resize(260, 70)
    bar.offer("one", "A short one" if language == "en" else "Kurz")
    words = bar.findChild(ElidedLabel)
    assert isinstance(words, ElidedLabel)
    assert not words.toolTip()
    bar.offer("two", "The whole story of a very long conversation")
    assert words.text().endswith("…”" if language == "en" else "…“ gelöscht")
    assert words.fontMetrics().horizontalAdvance(words.text()) <= words.width()
    assert words.toolTip().endswith("long conversation”" if language == "en" else "long conversation“ gelöscht")
    bar.resize(900, 70)
    assert words.text() == words.accessibleName()
    assert not words.toolTip()


def test_the_menu_renames_pins_exports_and_deletes(sidebar: Sidebar, qtbot: QtBot) -> None:
    index = sidebar.list.model().index(1, 0)
    line = index.data(Qt.ItemDataRole.UserRole + 1)
    actions = {action.text(): action for action in sidebar.menu_for(line, index).actions()}
    for words, signal, args in (
        ("Unpin", sidebar.pinned, ["alpha", False]),
        ("Export as Markdown…", sidebar.export_requested, ["alpha", "markdown"]),
        ("Export as JSON…", sidebar.export_requested, ["alpha", "json"]),
        ("Delete", sidebar.deleted, ["alpha"]),
    ):
        with qtbot.waitSignal(signal) as emitted:
            actions[words].trigger()
        assert emitted.args == args
    actions["Rename"].trigger()
    assert sidebar.list.findChild(QLineEdit) is not None


def test_searching_is_delayed_then_shows_hits_and_escape_ends_it(sidebar: Sidebar, qtbot: QtBot) -> None:
    sidebar.focus_search()
    with qtbot.waitSignal(sidebar.searched) as signal:
        qtbot.keyClicks(find(sidebar, QLineEdit, "Search conversations"), "needle")
    assert signal.args == ["needle"]
    sidebar.show_hits([Hit(entry("gamma"), "turn7", f"a {MARK_START}needle{MARK_END}")])
    assert shown(sidebar) == ["Gamma"]
    sidebar.show_entries([entry("new")])
    assert shown(sidebar) == ["Gamma"], "a changed list must not end the search"
    with qtbot.waitSignal(sidebar.opened) as opened:
        qtbot.keyClick(find(sidebar, QLineEdit, "Search conversations"), Qt.Key.Key_Return)
    assert opened.args == ["gamma", "turn7"]
    with qtbot.waitSignal(sidebar.searched) as ended:
        qtbot.keyClick(find(sidebar, QLineEdit, "Search conversations"), Qt.Key.Key_Escape)
    assert ended.args == [""]
    assert shown(sidebar) == ["Today", "New"]
    with qtbot.waitSignal(sidebar.left):
        qtbot.keyClick(find(sidebar, QLineEdit, "Search conversations"), Qt.Key.Key_Escape)


def test_nothing_found_and_no_conversations_are_said(sidebar: Sidebar) -> None:
    sidebar.show_hits([])
    empty = find(sidebar, QLabel, "empty")
    assert empty.isVisible()
    assert empty.text() == "Nothing found."
    sidebar.show_entries([])
    assert "conversations" in empty.text()


def test_names_for_those_who_cannot_see(sidebar: Sidebar) -> None:
    index = sidebar.list.model().index(1, 0)
    assert index.data(Qt.ItemDataRole.AccessibleTextRole) == "Alpha, pinned"
    field, more = find(sidebar, QLineEdit, "Search conversations"), find(sidebar, IconButton, "Import and export")
    for widget in (sidebar, sidebar.list, field, more):
        assert QAccessible.queryAccessibleInterface(widget).text(QAccessible.Text.Name)


def test_the_model_keeps_qts_rules(sidebar: Sidebar, qtmodeltester) -> None:  # type: ignore[no-untyped-def]
    qtmodeltester.check(sidebar.list.model())


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_paints_hits_and_long_titles(qtbot: QtBot, mode: str) -> None:
    sidebar = Sidebar(Theme(mode, 160))  # type: ignore[arg-type]
    qtbot.addWidget(sidebar)
    sidebar.resize(200, 500)
    sidebar.show_entries([entry("a", title="long " * 50), entry("b", title="")])
    before = sidebar.grab().toImage()
    sidebar.show_hits([Hit(entry("a"), "t", f"{'word ' * 20}{MARK_START}x{MARK_END}{' word' * 20}")])
    assert sidebar.grab().toImage() != before


def test_with_a_real_store(sidebar: Sidebar, qtbot: QtBot, tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    conversation = Conversation()
    store.add(conversation.id, conversation.add(Turn("user", "Where is the needle?")))
    sidebar.searched.connect(lambda text: sidebar.show_hits(store.search(text)))
    sidebar.show_entries(store.entries())
    with qtbot.waitSignal(sidebar.searched):
        qtbot.keyClicks(find(sidebar, QLineEdit, "Search conversations"), "need")
    assert shown(sidebar) == ["Where is the needle?"]
    store.close()
