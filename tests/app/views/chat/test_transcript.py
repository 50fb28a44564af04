"""The scrolling conversation: few widgets for many turns, and a view that never jumps."""

from collections.abc import Iterator

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QTextBrowser
from pytestqt.qtbot import QtBot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.settings.theme import COLUMN_WIDTH, Theme
from app.text.places import Sought
from app.views.chat.message import MessageView
from app.views.chat.transcript import Transcript
from app.views.controls.controls import RoundButton
from core.events import Piece, Role
from tests.app.find import find

REPLY = "A **reply** of some length, with `code`.\n\n```python\nprint('x')\n```\n\n- one\n- two\n"


def conversation(turns: int) -> Conversation:
    result, parent = Conversation(), None
    for at in range(turns):
        user = at % 2 == 0
        text = f"Question {at}?" if user else REPLY * (at % 5 + 1)
        parent = result.add(Turn("user" if user else "assistant", text, end="" if user else "stop", parent=parent)).id
    return result


@pytest.fixture
def chat() -> ChatModel:
    return ChatModel()


@pytest.fixture
def theme() -> Theme:
    return Theme("light")


@pytest.fixture
def transcript(qtbot: QtBot, chat: ChatModel, theme: Theme) -> Iterator[Transcript]:
    view = Transcript(theme, chat)
    qtbot.addWidget(view)
    view.resize(900, 600)
    view.show()
    yield view
    view.hide()


def widgets(transcript: Transcript) -> list[MessageView]:
    return [view for view in transcript.viewport().findChildren(MessageView) if not view.isHidden()]


def settle() -> None:
    for _ in range(5):
        QApplication.processEvents()


def test_two_thousand_turns_open_with_few_widgets(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(2000))
    settle()
    assert len(widgets(transcript)) < 40
    assert transcript.verticalScrollBar().value() == transcript.verticalScrollBar().maximum()
    assert transcript.view_of(chat.turn(1999).id) is not None


def test_scrolling_through_keeps_few_widgets(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(400))
    bar = transcript.verticalScrollBar()
    for step in range(40):
        bar.setValue(bar.maximum() * step // 40)
        settle()
        assert len(widgets(transcript)) < 40
    bar.setValue(0)
    settle()
    assert transcript.view_of(chat.turn(0).id) is not None


def test_what_is_looked_at_stays_while_a_reply_grows(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(60))
    settle()
    reply = chat.add(Turn("assistant", parent=chat.turn(59).id))
    chat.start_reply(reply)
    settle()
    transcript.show_turn(chat.turn(20).id)
    settle()
    view = transcript.view_of(chat.turn(20).id)
    assert view is not None
    before = view.y()
    for _ in range(50):
        chat.push(Piece("more words and more\n\n"))
        chat.flush()
        settle()
    assert not transcript.following
    assert view.y() == before
    chat.finish_reply("stop", {})


def test_the_view_follows_the_reply_at_the_end_only(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(20))
    reply = chat.add(Turn("assistant", parent=chat.turn(19).id))
    chat.start_reply(reply)
    bar = transcript.verticalScrollBar()
    for _ in range(30):
        chat.push(Piece("line\n\n"))
        chat.flush()
        settle()
        assert bar.value() == bar.maximum()
    bar.setValue(bar.maximum() - 300)
    settle()
    place = bar.value()
    chat.push(Piece("line\n\n" * 10))
    chat.flush()
    settle()
    assert bar.value() == place
    jump = find(transcript, RoundButton, "Go to the end")
    assert jump.isVisible()
    QTest.mouseClick(jump, Qt.MouseButton.LeftButton)
    assert transcript.following
    chat.finish_reply("stop", {})


def test_another_version_is_shown_where_the_old_one_stood(transcript: Transcript, chat: ChatModel) -> None:
    long = conversation(60)
    chat.show(long)
    other = long.add(Turn("user", "Another question 20?", parent=chat.turn(19).id))
    parent = other.id
    for _ in range(30):
        parent = long.add(Turn("assistant", REPLY, end="stop", parent=parent)).id
    long.switch(other.id, -1)
    chat.show(long)
    settle()
    transcript.show_turn(chat.turn(20).id)
    settle()
    before = transcript.view_of(chat.turn(20).id)
    assert before is not None
    place = before.y()
    chat.switch(chat.turn(20).id, 1)
    settle()
    after = transcript.view_of(other.id)
    assert after is not None
    assert after.y() == place
    assert not transcript.following


def test_the_column_is_centred_and_never_wider_than_it_may_be(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(4))
    for width in (400, 720, 1400):
        transcript.resize(width, 600)
        settle()
        view = transcript.view_of(chat.turn(3).id)
        assert view is not None
        assert view.width() <= min(COLUMN_WIDTH, width - 40)
        assert abs(view.x() + view.width() / 2 - width / 2) <= 1


def test_what_is_being_written_outlives_another_theme(transcript: Transcript, chat: ChatModel, theme: Theme) -> None:
    chat.show(conversation(4))
    id = chat.turn(3).id
    former = transcript.view_of(id)
    assert former is not None
    former.begin_edit()
    assert former.editor is not None
    former.editor.edit.setPlainText("Half written")
    theme.choose("dark", 120)
    view = transcript.view_of(id)
    assert view is not None
    assert view is not former
    assert view.editor is not None
    assert view.editor.edit.toPlainText() == "Half written"
    assert view.editor.isVisible()


@pytest.mark.parametrize("text", ["Short.", "A sentence of words that wraps. " * 5, "line\n" * 9 + "end"])
def test_the_editor_shows_all_of_a_short_text_without_scrolling(
    transcript: Transcript, chat: ChatModel, text: str
) -> None:
    talk = Conversation()
    talk.add(Turn("user", text))
    chat.show(talk)
    view = transcript.view_of(chat.turn(0).id)
    assert view is not None
    view.begin_edit()
    settle()
    assert view.editor is not None
    assert view.editor.edit.verticalScrollBar().maximum() == 0
    assert not view.editor.edit.verticalScrollBar().isVisible()


NO_KEY, CTRL, SHIFT, KEYPAD = (
    getattr(Qt.KeyboardModifier, name) for name in ("NoModifier", "ControlModifier", "ShiftModifier", "KeypadModifier")
)


@pytest.mark.parametrize(
    ("enter_sends", "modifier", "sent"),
    [(True, NO_KEY, 1), (True, KEYPAD, 1), (True, SHIFT, 0), (False, NO_KEY, 0), (False, KEYPAD, 0), (False, CTRL, 1)],
)
def test_enter_ends_an_edit_as_the_setting_says(
    transcript: Transcript, chat: ChatModel, enter_sends: bool, modifier: Qt.KeyboardModifier, sent: int
) -> None:
    chat.show(conversation(2))
    transcript.set_enter_sends(enter_sends)
    view = transcript.view_of(chat.turn(0).id)
    assert view is not None
    view.begin_edit()
    assert view.editor is not None
    view.editor.edit.setPlainText("Other words")
    edits = []
    transcript.edited.connect(lambda id, text: edits.append(text))
    QTest.keyClick(view.editor.edit, Qt.Key.Key_Return, modifier)
    assert len(edits) == sent
    assert view.editor.edit.document().blockCount() == (1 if sent or modifier == SHIFT else 2)


def test_the_keyboard_scrolls(transcript: Transcript, chat: ChatModel) -> None:
    chat.show(conversation(60))
    settle()
    bar = transcript.verticalScrollBar()
    QTest.keyClick(transcript, Qt.Key.Key_Home)
    assert bar.value() == 0
    QTest.keyClick(transcript, Qt.Key.Key_PageDown)
    assert 400 < bar.value() < 700
    QTest.keyClick(transcript, Qt.Key.Key_End)
    assert bar.value() == bar.maximum()


def test_one_change_signal_per_flush(chat: ChatModel, qtbot: QtBot) -> None:
    reply = chat.add(Turn("assistant"))
    chat.start_reply(reply)
    told: list[int] = []
    chat.dataChanged.connect(lambda first, last: told.append(first.row()))
    for _ in range(100):
        chat.push(Piece("x"))
    assert not told
    qtbot.waitUntil(
        lambda: len(told) == 1,
    )
    assert reply.content == "x" * 100
    chat.finish_reply("stop", {})


def test_a_long_reply_into_two_thousand_turns_keeps_few_widgets_and_its_end_in_view(
    transcript: Transcript, chat: ChatModel
) -> None:
    """The cost is measured by tests.bench.reading."""
    chat.show(conversation(2000))
    chat.start_reply(chat.add(Turn("assistant", parent=chat.turn(1999).id)))
    for piece in ["```python\n", *["    value = compute(1, 'two')  # and a comment\n"] * 300, "```\n"]:
        chat.push(Piece(piece))
        chat.flush()
        QApplication.processEvents()
        assert len(widgets(transcript)) < 40
    chat.finish_reply("stop", {})
    settle()
    assert transcript.following
    assert chat.turn(2000).content.count("\n") == 302


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_search_hit_is_scrolled_into_view(transcript: Transcript, chat: ChatModel, role: Role, qtbot: QtBot) -> None:
    lines = [f"Line {at} tells of the *sea* and its `harbours`, which are many." for at in range(300)]
    lines[270] = "Here the **lighthouse** of the sea stands[^1], number 270."
    talk = Conversation()
    first = talk.add(Turn("user", "What?", end=""))
    turn = talk.add(Turn(role, "\n\n".join(lines), end="stop", parent=first.id))
    chat.show(talk)
    transcript.show_place(turn.id, Sought.of("many. Here the <lighthouse> of the sea stands[^1]", "<", ">"))
    view = transcript.view_of(turn.id)
    assert view is not None
    qtbot.waitUntil(lambda: view.settled)
    settle()
    edit = next(edit for edit in view.findChildren(QTextBrowser) if "lighthouse" in edit.toPlainText())
    cursor = edit.document().find("lighthouse")
    top = edit.viewport().mapTo(transcript.viewport(), edit.cursorRect(cursor).topLeft()).y()
    assert 0 < top < transcript.viewport().height() / 2
    assert not transcript.following


def test_a_hit_near_the_top_of_a_message_shows_its_beginning(transcript: Transcript, chat: ChatModel) -> None:
    talk = Conversation()
    question = talk.add(Turn("user", "The lighthouse?\n" + "More. \n" * 80))
    talk.add(Turn("assistant", "Yes. " * 900, end="stop", parent=question.id))
    chat.show(talk)
    transcript.show_place(question.id, Sought.of("The <lighthouse>?", "<", ">"))
    settle()
    view = transcript.view_of(question.id)
    assert view is not None
    assert 0 < view.y() < 40
