"""Keyboard focus goes through the window as it is read, and can always be seen."""

from __future__ import annotations

from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QPushButton, QScrollArea, QWidget
from pytestqt.qtbot import QtBot

from app.application import Application
from app.settings.theme import Theme
from app.views.chat.message_parts import ActionRow
from app.views.controls.controls import IconButton
from app.views.controls.focus_ring import FocusRing
from app.views.controls.scroll_pane import ScrollPane
from app.views.frame.shortcuts_page import ShortcutsPage
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.scripted_engine import ScriptedEngine, answer, ask


def place(app: Application, widget: QWidget) -> tuple[int, int, int]:
    """Return the row of the turn that a widget belongs to, and the widget's place in it."""
    transcript = app.window.transcript
    for row in range(app.chat.rowCount()):
        view = transcript.view_of(app.chat.turn(row).id)
        if view is not None and view.isAncestorOf(widget):
            at = widget.mapTo(view, QPoint())
            return row, at.y(), at.x()
    raise AssertionError(widget)


def test_tab_goes_through_the_turns_as_they_are_read_and_scrolls_to_them(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("First reply."), answer("A line.\n\n" * 60, size=100)))
    ask(qtbot, app, "First question")
    ask(qtbot, app, "Second question")
    app.window.activateWindow()
    qtbot.waitUntil(app.window.isActiveWindow)
    transcript, composer = app.window.transcript, app.window.composer.edit
    transcript.setFocus(Qt.FocusReason.TabFocusReason)
    QTest.keyClick(transcript, Qt.Key.Key_Home)
    stops: list[tuple[int, int, int]] = []
    QTest.keyClick(transcript, Qt.Key.Key_Tab)
    while (focus := app.window.focusWidget()) is not composer:
        assert focus is not None
        assert not focus.visibleRegion().isEmpty()
        stops.append(place(app, focus))
        QTest.keyClick(focus, Qt.Key.Key_Tab)
    assert stops == sorted(stops)
    assert {row for row, _, _ in stops} == {0, 1, 2, 3}


def test_it_stays_in_a_row_whose_button_goes(qtbot: QtBot) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    actions = (("copy", "copy", "Copy"), ("regenerate", "regenerate", "Ask again"))
    row, other = ActionRow(Theme("light"), actions, window), QPushButton(window)
    window.show()
    row.show_only({"copy", "regenerate"})
    find(row, IconButton, "Ask again").setFocus()
    row.show_only({"copy"})
    assert window.focusWidget() is find(row, IconButton, "Copy")
    other.setFocus()
    row.show_only({"regenerate"})
    assert window.focusWidget() is other


def test_an_area_shows_that_tab_has_reached_it(qtbot: QtBot) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    area, button = QScrollArea(window), QPushButton(window)
    area.setGeometry(0, 0, 100, 50)
    ring = FocusRing(Theme("light"), area)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    button.setFocus()
    area.setFocus(Qt.FocusReason.TabFocusReason)
    assert ring.isVisible()
    assert ring.geometry() == area.rect()
    button.setFocus(Qt.FocusReason.TabFocusReason)
    assert not ring.isVisible()
    area.setFocus(Qt.FocusReason.MouseFocusReason)
    assert not ring.isVisible()


def test_a_primary_button_shows_focus(qtbot: QtBot) -> None:
    assert Theme("light").colours, "it has styled the application"
    window = QWidget()
    qtbot.addWidget(window)
    main, other = QPushButton("Save", window), QPushButton("Close", window)
    main.setProperty("primary", "true")
    other.move(200, 0)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)

    def painted(focus: QWidget) -> QImage:
        focus.setFocus(Qt.FocusReason.TabFocusReason)
        return main.grab().toImage()

    away, here = painted(other), painted(main)
    assert away != here
    assert away.size() == here.size()


def test_a_focused_button_has_no_second_frame_inside(qtbot: QtBot) -> None:
    assert Theme("light").colours, "it has styled the application"
    window = QWidget()
    qtbot.addWidget(window)
    button, other = QPushButton("Close", window), QPushButton("Other", window)
    other.move(200, 0)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    inside = button.rect().adjusted(4, 4, -4, -4)
    other.setFocus(Qt.FocusReason.TabFocusReason)
    away = button.grab(inside).toImage()
    button.setFocus(Qt.FocusReason.TabFocusReason)
    window.setAttribute(Qt.WidgetAttribute.WA_KeyboardFocusChange)  # as after a press of Tab
    assert button.grab(inside).toImage() == away


def test_the_page_of_shortcuts_fits_on_a_low_screen_and_scrolls_by_key(qtbot: QtBot) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    page = ShortcutsPage(Theme("light", 160), (("New conversation", "Ctrl+N"),) * 30, window)
    page.show()
    page.activateWindow()
    qtbot.waitUntil(page.isActiveWindow)
    assert page.height() < page.screen().availableGeometry().height()
    area = page.focusWidget()
    assert isinstance(area, ScrollPane)
    assert not area.horizontalScrollBar().maximum()
    QTest.keyClick(area, Qt.Key.Key_PageDown)
    assert area.verticalScrollBar().value() > 0
