"""The whole window with a scripted engine through the real worker: type, send, stream, stop, fail, go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application, StartOptions
from app.controllers.actions import suggested
from app.notices.notices import Notice
from app.views.chat.body import Body
from app.views.chat.message import ReplyMessage
from app.views.chat.message_parts import Editor
from app.views.chat.text import PlainView
from app.views.controls.controls import ElidedLabel, IconButton
from app.views.frame.status_line import Reading
from core.errors import ModelUnreadable, NetworkError, PromptTooLong
from core.events import (
    Event,
    Failed,
    Finished,
    Loading,
    LoadOptions,
    Piece,
    Prefill,
    Stats,
    Stop,
    Truncated,
    Unloaded,
)
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.scripted_engine import MODEL, ScriptedEngine, answer


def ask(qtbot: QtBot, app: Application, text: str) -> None:
    edit = app.window.composer.edit
    QTest.keyClicks(edit, text)
    QTest.keyClick(edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: not app.session.state.busy)


def shown(app: Application, row: int) -> ReplyMessage:
    view = app.window.transcript.view_of(app.chat.turn(row).id)
    assert isinstance(view, ReplyMessage)
    return view


def test_a_question_is_sent_with_enter_and_answered(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("The **answer** is 42."))
    app = start(engine)
    ask(qtbot, app, "What is it?")
    assert [turn.content for turn in app.chat.conversation.path()] == ["What is it?", "The **answer** is 42."]
    assert app.window.composer.edit.toPlainText() == ""
    assert engine.requests[0].messages[-1].content == "What is it?"
    qtbot.waitUntil(lambda: "The answer is 42." in _text(shown(app, 1)))
    figures = "23.4 tokens/s, 0.62 s to first token, 412 tokens"
    qtbot.waitUntil(lambda: find(shown(app, 1), QLabel, "receipt").text() == figures)  # laid out after the text


def _text(view: ReplyMessage) -> str:
    return "\n".join(edit.toPlainText() for edit in find(view, Body, "Reply").edits())


def test_a_small_screen_holds_all_of_the_window(start: Start) -> None:
    window = start(ScriptedEngine()).window
    room = window.screen().availableGeometry()
    assert window.width() > room.width(), "as it would be without"
    window.fit_screen()
    assert window.width() == room.width()
    assert window.height() < room.height()


def test_shift_enter_breaks_the_line(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    edit = app.window.composer.edit
    QTest.keyClicks(edit, "a")
    QTest.keyClick(edit, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(edit, "b")
    assert edit.toPlainText() == "a\nb"
    assert app.chat.rowCount() == 0


def test_an_empty_question_is_not_sent(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    QTest.keyClicks(app.window.composer.edit, "   ")
    QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Return)
    assert not engine.requests
    assert app.chat.rowCount() == 0


def test_send_becomes_stop_in_its_place_and_stop_keeps_what_came(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("word " * 400, size=5))
    app = start(engine)
    button = find(app.window.composer, QAbstractButton, "Send")
    place = button.geometry()
    engine.pause_at = 20
    app.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying")
    assert button.accessibleName() == "Stop"
    assert button.geometry() == place
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    turn = app.chat.turn(1)
    assert turn.end == "stopped"
    assert turn.content.startswith("word")
    assert button.accessibleName() == "Send"


def test_escape_stops(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("word " * 400, size=5))
    app = start(engine)
    engine.pause_at = 20
    app.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying")
    QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).end == "stopped"


def test_a_question_during_the_load_is_answered_after_it(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Here."))
    engine.gate.clear()
    app = start(engine, phase="loading")
    app.window.composer.submitted.emit("Early")
    assert app.session.state.busy
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).content == "Here."


def test_the_live_view_tells_that_a_model_is_loaded_and_none_after_a_failure(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(load=[Loading("weights", 0.5), Failed(ModelUnreadable("It is gone."))])
    engine.gate.clear()
    app = start(engine, phase="loading")
    assert app.live.reason.text() == "The model is being loaded."
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.phase == "empty")
    assert app.live.reason.text() == "No model is loaded."


def test_the_name_of_a_model_that_is_loaded_is_cut_with_an_ellipsis(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    app = start(engine, StartOptions("/models/" + "a-long-name-" * 20 + "Q4_K_M.gguf"), phase="loading")
    card = app.window.notices.load
    label = card.findChildren(ElidedLabel)[0]
    qtbot.waitUntil(lambda: label.text().endswith("…"))
    assert label.fontMetrics().horizontalAdvance(label.text()) <= label.width()
    assert label.toolTip().endswith("Q4_K_M.gguf")
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")


def test_escape_in_an_empty_search_goes_back_to_the_question(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine())
    app.window.resize(800, 600)
    app.commands.act("search")
    QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Escape)
    qtbot.waitUntil(app.window.composer.edit.hasFocus)
    assert not app.sidebar.isVisible()


def test_a_load_can_be_cancelled_and_another_tried(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("Here."), load=[Loading("weights", n / 10) for n in range(10)] + [MODEL])
    engine.gate.clear()
    app = start(engine, phase="loading")
    assert app.window.notices.load.isVisible()
    app.window.notices.load.findChild(QPushButton).click()
    qtbot.waitUntil(lambda: app.session.state.phase == "empty")
    assert app.window.notices.notices[-1].title == "Loading was cancelled"
    engine.gate.set()
    app.window.model_chosen.emit("another")
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    assert engine.sources[-1] == "another"


def test_a_model_that_cannot_be_read_gives_a_notice_and_the_next_one_loads(qtbot: QtBot, start: Start) -> None:
    error = ModelUnreadable("model.safetensors ends too early.", "", "Download it again.")
    engine = ScriptedEngine(load=[Loading("read", 0.1), Failed(error)])
    app = start(engine, phase="empty")
    notice = app.window.notices.notices[-1]
    assert notice.sentence == "model.safetensors ends too early. Download it again."
    assert notice.action == "open_model"
    engine.load_events = [MODEL]
    app.window.model_chosen.emit("good")
    ready(qtbot, app)
    ask(qtbot, app, "Hi")
    assert app.chat.turn(1).content == "Hello."


def test_another_model_in_mid_reply_keeps_the_reply_and_can_be_cancelled(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine([Piece("Half of it"), *[Piece(".")] * 100_000], answer("Whole."))
    engine.pause_at = 2
    app = start(engine)
    app.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying" and engine.paused)
    engine.pause_at = 1
    app.window.model_chosen.emit("another")
    engine.gate.set()
    qtbot.waitUntil(lambda: app.session.state.loading == engine.load_events[0])
    assert app.session.state.phase == "loading"
    assert app.window.notices.load.isVisible()
    assert app.chat.turn(1).content.startswith("Half of it.")
    assert app.chat.turn(1).end == "stopped"
    app.session.model.cancel_load()
    ready(qtbot, app)
    engine.gate.set()
    ask(qtbot, app, "Again")
    assert app.chat.turn(3).content == "Whole."


GONE = ModelUnreadable("It is gone.")


def fail_to_load(qtbot: QtBot, app: Application, source: str) -> Notice:
    app.window.model_chosen.emit(source)
    qtbot.waitUntil(lambda: app.session.state.phase != "loading")
    return app.window.notices.notices[-1]


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    before = app.session.state
    engine.load_events = [Loading("read", 0.1), Failed(GONE)]
    notice = fail_to_load(qtbot, app, "gone")
    assert notice.sentence == f"It is gone. {MODEL.name} stays loaded."
    assert app.session.state == before
    ask(qtbot, app, "Hi")
    assert app.chat.turn(1).content == "Hello."
    engine.load_events = [MODEL]
    app.window.model_chosen.emit("good")
    assert not app.window.notices.notices, "no longer true"
    ready(qtbot, app)
    assert find(app.window.status, Reading, "Context n/a"), "it has turns, which this model has not read"


def test_a_model_given_up_for_one_that_breaks_is_offered_again(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    engine.load_events = [Unloaded(), Loading("weights", 0.1), Failed(GONE)]
    notice = fail_to_load(qtbot, app, "gone")
    assert notice.sentence == f"It is gone. {MODEL.name} is no longer loaded."
    assert app.session.state.phase == "empty"
    engine.load_events = [MODEL]
    find(app.window.notices, QPushButton, "Load it again").click()
    ready(qtbot, app)
    assert engine.sources == ["some/model", "gone", "some/model"]


class LateEngine(ScriptedEngine):
    """Gives the model up just when the load is stopped."""

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        if source != "first":
            yield from super().load(source, options, stop)
            return
        while not stop():
            self.gate.wait(0.001)
        yield Unloaded()
        yield Finished("stopped", Stats())


def test_a_model_given_up_by_a_load_that_another_one_replaced_is_offered_again(qtbot: QtBot, start: Start) -> None:
    engine = LateEngine()
    app = start(engine)
    app.window.model_chosen.emit("first")
    engine.load_events = [Failed(GONE)]
    assert fail_to_load(qtbot, app, "second").button == "Load it again"
    assert app.session.state.phase == "empty"


def test_trying_again_means_the_model_that_could_not_be_loaded(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine()
    app = start(engine)
    ask(qtbot, app, "Hi")
    engine.load_events = [Failed(NetworkError("The server does not answer."))]
    fail_to_load(qtbot, app, "remote")
    engine.load_events = [MODEL]
    find(app.window.notices, QPushButton, "Try again").click()
    ready(qtbot, app)
    assert engine.sources == ["some/model", "remote", "remote"]
    assert len(engine.requests) == 1


def ready(qtbot: QtBot, app: Application) -> None:
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")


def test_a_failed_reply_keeps_its_words_and_says_why(qtbot: QtBot, start: Start) -> None:
    events: list[Event] = [Piece("Half a "), Failed(PromptTooLong("The message is longer than the context."))]
    app = start(ScriptedEngine(events, answer("Whole.")))
    ask(qtbot, app, "Hi")
    assert (app.chat.turn(1).content, app.chat.turn(1).end) == ("Half a ", "failed")
    assert app.window.notices.notices[-1].action == "new_chat"
    ask(qtbot, app, "Again")
    assert app.chat.turn(3).content == "Whole."


def test_regenerate_keeps_the_old_reply_as_a_version(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("One."), answer("Two.")))
    ask(qtbot, app, "Hi")
    app.window.transcript.wished.emit("regenerate", app.chat.turn(1).id)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).content == "Two."
    view = shown(app, 1)
    previous = view.findChild(IconButton, "previous")
    QTest.mouseClick(previous, Qt.MouseButton.LeftButton)
    assert app.chat.turn(1).content == "One."
    assert app.chat.conversation.versions(app.chat.turn(1).id) == (1, 2)


def test_an_edited_question_is_asked_again_beside_the_old_one(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("One."), answer("Two."))
    app = start(engine)
    ask(qtbot, app, "First")
    QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Up)
    view = app.window.transcript.view_of(app.chat.turn(0).id)
    assert view is not None
    assert view.editor is not None
    view.editor.edit.setPlainText("Second")
    QTest.keyClick(view.editor.edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert [turn.content for turn in app.chat.conversation.path()] == ["Second", "Two."]
    assert engine.requests[-1].messages[-1].content == "Second"
    assert app.chat.conversation.versions(app.chat.turn(0).id) == (2, 2)


def change(app: Application, row: int, text: str) -> Editor:
    """Change a turn in place as a user does, then press Enter."""
    view = app.window.transcript.view_of(app.chat.turn(row).id)
    assert view is not None
    view.begin_edit()
    editor = view.editor
    assert editor is not None
    editor.edit.setPlainText(text)
    QTest.keyClick(editor.edit, Qt.Key.Key_Return)
    return editor


def test_an_edit_during_a_reply_is_not_lost(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("One."), answer("Two."), answer("Three."))
    app = start(engine)
    ask(qtbot, app, "First")
    engine.pause_at = 1
    app.window.composer.submitted.emit("Second")
    qtbot.waitUntil(lambda: app.session.state.prefill is not None and engine.paused)
    editor = change(app, 0, "Changed")
    assert app.window.notices.notices[-1].title == "A reply is still awaited"
    assert app.chat.turn(0).content == "First"
    assert editor.isVisible()
    assert editor.edit.toPlainText() == "Changed"
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    QTest.keyClick(editor.edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert [turn.content for turn in app.chat.conversation.path()] == ["Changed", "Three."]
    assert app.window.composer.edit.hasFocus()


def test_without_a_model_a_reply_can_be_edited_and_a_question_is_not_lost(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("One."))
    app = start(engine)
    ask(qtbot, app, "First")
    app.session.model.rest()
    change(app, 1, "One, and more.")
    assert app.session.state.phase == "resting"
    assert (app.chat.turn(1).content, app.chat.turn(1).end) == ("One, and more.", "edited")
    app.session.model.wake()
    ready(qtbot, app)
    engine.load_events = [Unloaded(), Failed(ModelUnreadable("It is gone."))]
    app.window.model_chosen.emit("gone")
    qtbot.waitUntil(lambda: app.session.state.phase == "empty")
    editor = change(app, 0, "Changed")
    assert app.window.notices.notices[-1].title == "No model is loaded"
    assert editor.isVisible()
    assert editor.edit.toPlainText() == "Changed"


def test_an_edit_that_changes_nothing_ends_and_an_empty_one_stays(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer(" One. ")))
    ask(qtbot, app, "First")
    view = app.window.transcript.view_of(app.chat.turn(0).id)
    assert view is not None
    assert change(app, 0, "  ") is view.editor
    change(app, 0, "First ")
    assert view.editor is None
    assert app.chat.conversation.versions(app.chat.turn(0).id) == (1, 1)


def test_continue_goes_on_in_the_same_reply(qtbot: QtBot, start: Start) -> None:
    cut: list[Event] = [Piece("Half"), Finished("length", Stats(new_tokens=1))]
    engine = ScriptedEngine(cut, answer(" and whole."))
    app = start(engine)
    ask(qtbot, app, "Hi")
    assert app.chat.turn(1).end == "length"
    app.window.transcript.wished.emit("continue", app.chat.turn(1).id)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert app.chat.turn(1).content == "Half and whole."
    assert engine.requests[-1].continue_reply
    qtbot.waitUntil(lambda: _text(shown(app, 1)) == "Half and whole.")


def test_continue_wakes_a_model_that_rests(qtbot: QtBot, start: Start) -> None:
    cut: list[Event] = [Piece("Half"), Finished("length", Stats(new_tokens=1))]
    engine = ScriptedEngine(cut, answer(" and whole."))
    app = start(engine)
    ask(qtbot, app, "Hi")
    app.session.model.rest()
    engine.gate.clear()
    app.window.transcript.wished.emit("continue", app.chat.turn(1).id)
    assert app.session.state.asked
    app.session.stop()
    assert (app.chat.turn(1).content, app.chat.turn(1).end) == ("Half", "length")
    assert app.chat.turn(1).receipt["new_tokens"] == 1
    app.window.transcript.wished.emit("continue", app.chat.turn(1).id)
    engine.gate.set()
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert len(engine.sources) == 2
    assert app.chat.turn(1).content == "Half and whole."
    assert [request.continue_reply for request in engine.requests] == [False, True]
    assert [message.content for message in engine.requests[1].messages] == ["Hi", "Half"]


def test_reasoning_is_folded_and_opens(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("So.", reasoning="Let me think.")))
    ask(qtbot, app, "Hi")
    thoughts = find(shown(app, 1), PlainView, "Reasoning")
    assert app.chat.turn(1).reasoning == "Let me think."
    assert thoughts.isHidden()
    fold = find(shown(app, 1), QPushButton, "Thought for a moment, folded")
    fold.click()
    assert fold.accessibleName() == "Thought for a moment, shown"
    assert thoughts.toPlainText() == "Let me think."


def test_what_was_left_out_of_the_prompt_is_said(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine([Truncated(4, 900), *answer("Short.")]))
    ask(qtbot, app, "Hi")
    qtbot.waitUntil(
        lambda: (
            find(shown(app, 1), QLabel, "left_out").text() == "The 4 oldest messages were left out to fit the context."
        )
    )


def test_copy_puts_the_source_on_the_clipboard(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("**bold**")))
    ask(qtbot, app, "Hi")
    shown(app, 1).findChild(IconButton, "copy").click()
    assert QGuiApplication.clipboard().text() == "**bold**"


def test_figures_that_are_not_known_read_na(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine([Prefill(1, 2, 0), Piece("x"), Finished("stop", Stats())]))
    ask(qtbot, app, "Hi")
    assert app.window.top.speed.accessibleName() == "Speed now: n/a tokens/s"
    assert find(app.window.status, Reading, "First token n/a")


def test_nothing_moves_when_the_figures_change(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("x")))
    before = [
        widget.geometry()
        for widget in (
            app.window.top.speed,
            app.window.top.strip,
            find(app.window.composer, QAbstractButton, "Send"),
        )
    ]
    ask(qtbot, app, "Hi")
    after = [
        widget.geometry()
        for widget in (
            app.window.top.speed,
            app.window.top.strip,
            find(app.window.composer, QAbstractButton, "Send"),
        )
    ]
    assert before == after


def test_closing_in_mid_reply_ends_the_thread(qtbot: QtBot, start: Start) -> None:
    engine = ScriptedEngine(answer("word " * 400, size=5))
    app = start(engine)
    engine.pause_at = 20
    app.window.composer.submitted.emit("Go")
    qtbot.waitUntil(lambda: app.session.state.phase == "replying")
    app.window.close()
    assert engine.closed


def test_every_button_has_a_name_and_is_large_enough(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("x\n```py\ny\n```")))
    ask(qtbot, app, "Hi")
    for button in app.window.findChildren(IconButton):
        assert button.accessibleName()
        assert min(button.width(), button.height()) >= 28


def test_the_focus_comes_back_when_what_had_it_has_gone(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("Yes.")))
    ask(qtbot, app, "Hi")
    find(shown(app, 1).row, IconButton, "copy").setFocus()
    app.theme.choose("dark" if not app.theme.dark else "light", 100)
    assert app.window.focusWidget() is app.window.composer.edit


def test_context_of_a_conversation_from_before_is_not_known(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("Yes.")))
    assert find(app.window.status, Reading, "Context 0 of 8,192")
    ask(qtbot, app, "Hi")
    app.chat.show(app.chat.conversation)
    assert find(app.window.status, Reading, "Context n/a")


def test_an_export_is_named_after_the_conversation() -> None:
    assert suggested('What is "a/b"?', ".md").endswith("What is a b.md")
    assert suggested("..", ".json").endswith("Conversation.json")


@pytest.mark.parametrize("title", ["Aux", "nul. And void", "COM1", "lpt3 .x"])
def test_no_export_is_named_after_a_device_of_windows(title: str) -> None:
    assert Path(suggested(title, ".md")).name == f"_{title}.md"
    assert Path(suggested(f"{title}s", ".md")).stem.startswith("_") == ("." in title)


def test_type_grows_and_shrinks_by_keys_within_its_bounds(qtbot: QtBot, start: Start) -> None:
    app = start(ScriptedEngine(answer("Yes.")))
    for action, times, percent in (("larger", 1, 110), ("larger", 9, 160), ("smaller", 1, 150), ("normal", 1, 100)):
        for _ in range(times):
            app.window.actions_by_id[action].trigger()
        assert app.theme.percent == app.preferences.settings.font_percent == percent
    assert "Ctrl+=" in [keys.toString() for keys in app.window.actions_by_id["larger"].shortcuts()]
