"""Notices leave by themselves only if they ask for nothing."""

import pytest
from PySide6.QtCore import QPoint, QTimer
from PySide6.QtGui import QTextLayout
from PySide6.QtWidgets import QLabel, QPushButton, QWidget
from pytestqt.qtbot import QtBot

from app.notices.notices import Notice
from app.settings.theme import Theme
from app.views.controls.controls import IconButton
from app.views.frame import notice_bar
from app.views.frame.notice_bar import NoticeBar, NoticeCard
from tests.app.find import find

INFORMS = Notice("Imported", "Three conversations were added.", "info")
ASKS = Notice("No model is loaded", "Load one to get an answer.", "info", "models", "Choose a model")
WARNS = Notice("A setting was not used", "The file could not be read.", "warning")


def test_a_notice_that_only_informs_leaves_and_others_stay(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice_bar, "LEAVES_AFTER_MS", 50)
    window = QWidget()
    qtbot.addWidget(window)
    bar, elsewhere = NoticeBar(Theme(), window), QPushButton(window)
    window.show()
    elsewhere.setFocus()
    for notice in (INFORMS, ASKS, WARNS):
        bar.add(notice)
    assert bar.notices == [INFORMS, ASKS, WARNS]
    qtbot.waitUntil(lambda: INFORMS not in bar.notices)
    assert bar.notices == [ASKS, WARNS]


def test_a_notice_stays_under_the_keyboard_focus(qtbot: QtBot) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    bar, elsewhere = NoticeBar(Theme(), window), QPushButton(window)
    window.show()
    bar.add(INFORMS)
    (card,) = bar.findChildren(NoticeCard)
    (timer,) = card.findChildren(QTimer)
    find(card, IconButton, "Close").setFocus()
    timer.timeout.emit()
    assert bar.notices == [INFORMS]
    elsewhere.setFocus()
    timer.timeout.emit()
    assert bar.notices == []


def test_no_line_of_a_notice_is_broken_inside_a_rate(qtbot: QtBot) -> None:
    bar = NoticeBar(Theme())
    qtbot.addWidget(bar)
    bar.add(Notice("Too long", "It writes about 7.2 instead of 11.9 tokens/s.", "warning"))
    label = next(each for each in bar.findChildren(QLabel) if "tokens" in each.text())
    for width in range(60, 400, 3):
        assert not any(line.startswith("s.") for line in lines_at(label, width))


def lines_at(label: QLabel, width: int) -> list[str]:
    layout = QTextLayout(label.text(), label.font())
    layout.beginLayout()
    lines = []
    while (line := layout.createLine()).isValid():
        line.setLineWidth(width)
        lines.append(label.text()[line.textStart() : line.textStart() + line.textLength()].lstrip("\u2060"))
    layout.endLayout()
    return lines


@pytest.mark.parametrize("times", [1, 6])
def test_many_words_have_the_whole_width_and_few_the_button_beside_them(qtbot: QtBot, times: int) -> None:
    bar = NoticeBar(Theme())
    qtbot.addWidget(bar)
    bar.resize(600, 300)
    bar.add(Notice("Full", "The memory is full. " * times, "error", "models", "Open another model…"))
    bar.show()
    label = next(each for each in bar.findChildren(QLabel) if "memory" in each.text())
    button = find(bar, QPushButton, "Open another model…")
    qtbot.waitUntil(lambda: button.x() > 0 and label.width() > 100)
    beside = button.mapTo(bar, QPoint()).x() > label.mapTo(bar, QPoint()).x()
    assert beside == (times == 1)
    assert label.height() >= label.heightForWidth(label.width()), "no line is cut"
