"""The empty chat: every word can be read, in a narrow window too."""

from __future__ import annotations

from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from app.settings.theme import Theme
from app.views.chat.empty_chat import EmptyChat, PromptCard


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
