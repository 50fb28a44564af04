"""The empty chat: every word can be read, in a narrow window too."""

from __future__ import annotations

from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import QApplication, QLabel, QWidget
from pytestqt.qtbot import QtBot

from app.notices.notices import Notice
from app.settings.theme import Theme
from app.views.chat.empty_chat import EmptyChat, PromptCard
from tests.app.conftest import Start
from tests.app.scripted_engine import ScriptedEngine


def shown(qtbot: QtBot, width: int) -> EmptyChat:
    chat = EmptyChat(Theme("light"))
    qtbot.addWidget(chat)
    chat.resize(width, 700)
    with qtbot.waitExposed(chat):
        chat.show()
    return chat


def test_a_card_is_as_high_as_all_of_its_words(qtbot: QtBot) -> None:
    chat = shown(qtbot, 320)
    card = chat.findChildren(PromptCard)[0]
    short = card.height_for(150)
    card.set_prompt("A model that is considerably larger", card.prompt)
    assert card.height_for(150) >= short + QFontMetrics(card.font()).lineSpacing()
    assert card.height_for(600) < short


def test_cards_beside_each_other_are_alike_and_nothing_is_wider_than_the_window(qtbot: QtBot) -> None:
    chat = shown(qtbot, 320)
    cards = [card for card in chat.findChildren(PromptCard) if card.isVisible()]
    assert {card.height() for card in cards} == {max(card.height_for(card.width()) for card in cards)}
    assert all(label.wordWrap() or label.sizeHint().width() <= label.width() for label in chat.findChildren(QLabel))
    assert chat.minimumSizeHint().width() <= 320


def test_in_a_low_window_parts_are_left_out_and_none_is_cut_or_covered(qtbot: QtBot) -> None:
    chat = shown(qtbot, 640)
    chat.set_machine("This computer: 8-core CPU, 32 GB RAM and no graphics card in use.")
    chat.advise("some/model", "about 20 tokens/s")
    left = []
    for height in (700, 280, 200, 110, 700):
        chat.resize(640, height)
        QApplication.processEvents()
        parts = [part for part in chat.findChildren(QWidget) if part.isVisible()]
        for part in parts:
            assert part.height() >= (part.minimumHeight() or part.minimumSizeHint().height()), height
            assert chat.rect().contains(part.geometry()), height
            assert not any(part.geometry().intersects(other.geometry()) for other in parts if other is not part), height
        left.append(len(parts))
    assert left[0] == left[-1] > left[1] > left[2] > left[3] >= 1


def test_the_composer_keeps_its_height_beside_notices(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    app.window.resize(900, 600)
    app.window.empty.advise("some/model", "about 20 tokens/s")
    for number in range(3):
        app.window.notices.add(
            Notice("Something was said", f"It takes a line of its own. {number}", "warning", "models", "Open")
        )
    app.window.composer.edit.setPlainText("line\n" * 30)
    for _ in range(10):
        QApplication.processEvents()
    composer = app.window.composer
    bottom = composer.mapTo(app.window, composer.rect().bottomLeft()).y()
    assert bottom < app.window.status.mapTo(app.window, app.window.status.rect().topLeft()).y()
