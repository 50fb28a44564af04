"""Files attached in the window: chips, the text given to the model, and error sentences."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QUrl
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application
from app.conversations.imports.reader import read_json
from app.views.chat.chips import Chip
from app.views.chat.document_dialog import DocumentDialog, PasswordDialog
from app.views.chat.message import UserMessage
from app.views.chat.pictures import PictureDialog, Thumbnail
from app.views.controls.controls import RoundButton
from core.documents.document import Document
from core.errors import BadRequest
from core.events import Failed, Loading, LoadOptions
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.scripted_engine import END, MODEL, ScriptedEngine, answer, ask
from tests.core.documents.made import pdf_with_password
from tests.core.vision.seeing import picture

NOTES = "The answer is 42.\nNobody knows the question.\n"
READ = f'<document name="notes.md">\n{NOTES}\n</document>'


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(answer("42."), load=[Loading("weights", 0.5), replace(MODEL, context=2000)])


@pytest.fixture
def app(start: Start, engine: ScriptedEngine) -> Application:
    return start(engine)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes.md").write_text(NOTES, newline="\n")
    return tmp_path / "notes.md"


def chips(app: Application) -> list[str]:
    found = (chip.findChild(QPushButton) for chip in app.window.chips.findChildren(Chip) if not chip.isHidden())
    return [words.accessibleName() for words in found if words is not None]


def attach(app: Application, qtbot: QtBot, *paths: Path) -> None:
    app.window.files.emit(list(paths))
    qtbot.waitUntil(lambda: counted(app))


def counted(app: Application) -> bool:
    """Whether every file has the model's own token count."""
    return all(each.counted for each in app.attachments.pending)


def test_a_file_is_read_counted_and_given_to_the_model_whole(
    app: Application, engine: ScriptedEngine, notes: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, notes)
    assert chips(app) == [f"notes.md, {len(READ.split())} tokens"]
    ask(qtbot, app, "What is it?")
    assert engine.requests[-1].messages[-1].content == f"{READ}\n\nWhat is it?"
    assert app.chat.turn(0).content == "What is it?"
    assert chips(app) == []
    ask(qtbot, app, "And then?")
    assert READ in engine.requests[-1].messages[-3].content
    assert engine.requests[-1].messages[-1].content == "And then?"


def test_an_edited_question_keeps_its_files(
    app: Application, engine: ScriptedEngine, notes: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, notes)
    ask(qtbot, app, "What is it?")
    app.session.edit(app.chat.turn(0).id, "What else?")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert engine.requests[-1].messages[-1].content == f"{READ}\n\nWhat else?"


def test_the_chips_of_a_question_keep_the_exact_count(
    app: Application, engine: ScriptedEngine, notes: Path, qtbot: QtBot
) -> None:
    exact = [f"notes.md, {len(READ.split())} tokens"]
    attach(app, qtbot, notes)
    ask(qtbot, app, "What is it?")
    assert asked_chips(app, qtbot) == exact
    app.session.edit(app.chat.turn(0).id, "What else?")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert asked_chips(app, qtbot) == exact
    id = app.chat.conversation.id
    app.commands.act("new_chat")
    ask(qtbot, app, "Something else")
    app.library.open(id, "")
    assert asked_chips(app, qtbot) == exact, "read from the disk"


def asked_chips(app: Application, qtbot: QtBot) -> list[str]:
    id = app.chat.turn(0).id
    qtbot.waitUntil(lambda: app.window.transcript.view_of(id) is not None)
    view = app.window.transcript.view_of(id)
    assert view is not None
    return [chip.findChildren(QPushButton)[0].accessibleName() for chip in view.findChildren(Chip)]


def test_files_that_do_not_fit_say_so_and_the_short_ones_are_read_whole(
    app: Application, engine: ScriptedEngine, notes: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    (tmp_path / "long.md").write_text("word " * 3000)
    with qtbot.waitSignal(app.attachments.notice) as told:
        attach(app, qtbot, notes, tmp_path / "long.md")
    assert told.args[0].title == "The attached files are too long to be read whole"
    assert f"about {3003 + len(READ.split()):,} tokens, and room for about 1,500" in told.args[0].sentence.lower()
    assert [words.endswith("read in parts") for words in chips(app)] == [False, True]
    qtbot.waitUntil(lambda: all(app.long.is_ready(each.document) for each in app.attachments.pending[1:]))
    ask(qtbot, app, "What is it?")
    content = engine.requests[-1].messages[-1].content
    assert READ in content
    assert 100 < content.count("word") < 3000
    assert told.args[0] not in app.window.notices.notices, "it was about files that have gone with the question"


def test_what_was_said_of_a_long_file_goes_with_it(app: Application, qtbot: QtBot, tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("word " * 3000)
    with qtbot.waitSignal(app.attachments.notice) as told:
        attach(app, qtbot, tmp_path / "long.md")
    assert app.window.notices.notices == [told.args[0]]
    app.attachments.remove(0)
    assert app.window.notices.notices == []


def test_a_file_that_is_there_already_is_not_attached_twice(app: Application, notes: Path, qtbot: QtBot) -> None:
    (notes.parent / "same.md").write_bytes(notes.read_bytes())
    attach(app, qtbot, notes, notes, notes.parent / "same.md")
    assert [words.partition(",")[0] for words in chips(app)] == ["notes.md", "same.md"]


def test_a_short_file_is_read_whole_in_a_short_context(start: Start, notes: Path, qtbot: QtBot) -> None:
    app = start(ScriptedEngine(answer("42."), load=[replace(MODEL, context=256)]))
    attach(app, qtbot, notes)
    assert chips(app) == [f"notes.md, {len(READ.split())} tokens"]


def test_another_conversation_judges_anew_what_fits(
    app: Application, engine: ScriptedEngine, tmp_path: Path, qtbot: QtBot
) -> None:
    (tmp_path / "first.md").write_text("one " * 900)
    (tmp_path / "second.md").write_text("two " * 900)
    engine.replies = [answer("42.", stats=replace(END, context_used=1000))]
    attach(app, qtbot, tmp_path / "first.md")
    ask(qtbot, app, "What is it?")
    asked = app.chat.conversation.id
    attach(app, qtbot, tmp_path / "second.md")
    assert [words.endswith("read in parts") for words in chips(app)] == [True]
    assert len(app.window.notices.notices) == 1
    app.window.actions_by_id["new_chat"].trigger()
    assert [words.endswith("read in parts") for words in chips(app)] == [False]
    assert app.window.notices.notices == []
    app.library.open(asked, "")
    assert [words.endswith("read in parts") for words in chips(app)] == [True]
    qtbot.waitUntil(lambda: app.long.is_ready(app.attachments.pending[0].document))
    ask(qtbot, app, "And now?")
    assert 100 < engine.requests[-1].messages[-1].content.count("two") < 900


def test_files_that_came_before_the_model_are_counted_by_it(
    app: Application, engine: ScriptedEngine, notes: Path, monkeypatch: pytest.MonkeyPatch, qtbot: QtBot
) -> None:
    app.session.model.rest()
    with monkeypatch.context() as patch, qtbot.waitSignal(app.worker.told):
        patch.setattr(engine, "count", lambda _: iter([Failed(BadRequest("No model is loaded.", "", ""))]))
        app.window.files.emit([notes])
    assert not counted(app)
    app.commands.act("reload")
    qtbot.waitUntil(lambda: counted(app))


def test_a_question_waits_for_the_files_being_read(app: Application, engine: ScriptedEngine, notes: Path) -> None:
    app.window.files.emit([notes])
    assert chips(app) == ["notes.md, Reading…"]
    app.window.composer.submitted.emit("What is it?")
    assert engine.requests == []
    assert app.window.composer.edit.toPlainText() == "What is it?"


def test_a_file_that_cannot_be_read_says_so_and_goes(app: Application, tmp_path: Path, qtbot: QtBot) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with qtbot.waitSignal(app.attachments.notice) as told:
        app.window.files.emit([tmp_path / "p.png"])
    assert told.args[0].sentence.startswith("p.png cannot be read. The file is no picture")
    assert chips(app) == []
    assert told.args[0] in app.window.notices.notices
    ask(qtbot, app, "What is it?")
    assert app.window.notices.notices == [], "the question was asked without the file"


def test_a_chip_opens_the_text_as_the_model_reads_it_and_its_cross_removes_it(
    app: Application, notes: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, notes)
    chip = app.window.chips.findChild(Chip)
    assert chip is not None
    chip.opened.emit(0)
    dialog = app.window.findChild(DocumentDialog)
    assert dialog is not None
    assert dialog.text.toPlainText() == READ
    dialog.close()
    chip.removed.emit(0)
    assert chips(app) == []
    assert app.window.chips.isHidden()


def test_a_question_shows_its_files_in_the_transcript(app: Application, notes: Path, qtbot: QtBot) -> None:
    attach(app, qtbot, notes)
    ask(qtbot, app, "What is it?")
    qtbot.waitUntil(lambda: app.window.transcript.view_of(app.chat.turn(0).id) is not None)
    view = app.window.transcript.view_of(app.chat.turn(0).id)
    assert isinstance(view, UserMessage)
    with qtbot.waitSignal(app.window.transcript.opened) as opened:
        chip = view.findChild(Chip)
        assert chip is not None
        chip.opened.emit(0)
    assert opened.args[0].pages == (NOTES,)


def test_pasted_files_are_attached_and_pasted_text_is_text(app: Application, notes: Path, qtbot: QtBot) -> None:
    files, words = QMimeData(), QMimeData()
    files.setUrls([QUrl.fromLocalFile(str(notes))])
    words.setText("words")
    with qtbot.waitSignal(app.window.files) as pasted:
        app.window.composer.edit.insertFromMimeData(files)
    app.window.composer.edit.insertFromMimeData(words)
    assert pasted.args[0] == [notes]
    assert app.window.composer.edit.toPlainText() == "words"


def asked_for_password(app: Application) -> list[PasswordDialog]:
    return [dialog for dialog in app.window.findChildren(PasswordDialog) if dialog.isVisible()]


def test_a_locked_file_asks_for_its_password_until_it_is_right(app: Application, tmp_path: Path, qtbot: QtBot) -> None:
    app.window.files.emit([pdf_with_password(tmp_path / "l.pdf", "A secret", "open")])
    for password, why in (("wrong", "It is locked with a password."), ("open", "The password is wrong.")):
        qtbot.waitUntil(lambda: len(asked_for_password(app)) == 1)
        dialog = asked_for_password(app)[0]
        assert dialog.labelText() == f"l.pdf\n{why}"
        dialog.setTextValue(password)
        dialog.accept()
    qtbot.waitUntil(lambda: bool(chips(app)) and counted(app))
    app.attachments.open(0)
    shown = app.window.findChild(DocumentDialog)
    assert shown is not None
    assert "A secret" in shown.text.toPlainText()


def test_a_locked_file_goes_when_its_password_is_not_known(app: Application, tmp_path: Path, qtbot: QtBot) -> None:
    app.window.files.emit([pdf_with_password(tmp_path / "l.pdf", "A secret", "open")])
    qtbot.waitUntil(lambda: len(asked_for_password(app)) == 1)
    asked_for_password(app)[0].reject()
    assert chips(app) == []


def test_the_chip_says_how_many_pages_were_read(
    app: Application, notes: Path, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = threading.Event()

    def read(path: Path, progress: Callable[[int, int], None], **_: object) -> Document:
        progress(12, 340)
        whole.wait(60)
        return Document(path.name, (NOTES,))

    monkeypatch.setattr("app.controllers.attachments.read_document", read)
    app.window.files.emit([notes])
    qtbot.waitUntil(lambda: chips(app) == ["notes.md, Reading… 12 of 340 pages"])
    whole.set()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(picture(1))
    return tmp_path / "photo.png"


@pytest.fixture
def seeing(qtbot: QtBot, engine: ScriptedEngine, app: Application) -> Application:
    """A window with a model that sees."""
    engine.load_events = [replace(MODEL, context=2000, sees=True)]
    app.session.load("somebody/sees", LoadOptions())
    qtbot.waitUntil(lambda: app.session.state.model is not None and app.session.state.model.sees)
    return app


def test_a_picture_is_shown_to_a_model_that_sees(
    seeing: Application, engine: ScriptedEngine, photo: Path, notes: Path, qtbot: QtBot
) -> None:
    attach(seeing, qtbot, photo, notes)
    assert chips(seeing)[0].startswith("photo.png, 70 × 60")
    ask(qtbot, seeing, "What is it?")
    asked = engine.requests[-1].messages[-1]
    assert asked.pictures == (picture(1),)
    assert asked.content == f"{READ}\n\nWhat is it?"
    row = seeing.window.transcript.view_of(seeing.chat.turn(0).id)
    assert row is not None
    (thumbnail,) = row.findChildren(Thumbnail)
    assert thumbnail.size().toTuple() == (70, 60)
    thumbnail.click()
    dialog = seeing.window.findChild(PictureDialog)
    assert dialog is not None
    assert dialog.windowTitle() == "photo.png"
    dialog.reject()


def test_a_picture_is_kept_and_exported_with_its_conversation(
    seeing: Application, photo: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    attach(seeing, qtbot, photo)
    ask(qtbot, seeing, "What is it?")
    shown = seeing.chat.conversation.id
    seeing.library.new()
    seeing.library.open(shown, "")
    exported = tmp_path / "exported.json"
    assert seeing.library.write(shown, "json", exported)
    for found in (seeing.chat.conversation, read_json(exported)[0].conversation):
        asked = found.messages(found.path()[0].id)[-1]
        assert asked.pictures == (picture(1),)


def test_a_model_that_only_reads_is_asked_nothing(
    app: Application, engine: ScriptedEngine, photo: Path, qtbot: QtBot
) -> None:
    app.window.files.emit([photo])
    qtbot.waitUntil(lambda: "photo.png, 70 × 60" in chips(app))
    assert "cannot see pictures" in app.window.notices.notices[-1].title
    asked = len(engine.requests)
    app.window.composer.submitted.emit("What is it?")
    assert app.chat.rowCount() == 0
    assert len(engine.requests) == asked
    assert app.window.composer.edit.toPlainText() == "What is it?"
    app.window.chips.removed.emit(0)
    assert app.window.notices.notices == [], "the picture was taken away"


def test_a_model_that_sees_ends_the_notice_about_a_blind_one(
    app: Application, engine: ScriptedEngine, photo: Path, qtbot: QtBot
) -> None:
    app.window.files.emit([photo])
    qtbot.waitUntil(lambda: len(app.window.notices.notices) == 1)
    engine.load_events = [replace(MODEL, context=2000, sees=True)]
    app.load("seeing/model")
    qtbot.waitUntil(lambda: counted(app))
    assert app.window.notices.notices == []


def test_a_picture_is_pasted(seeing: Application, engine: ScriptedEngine, qtbot: QtBot) -> None:
    copied = QMimeData()
    copied.setImageData(QImage.fromData(picture(1)))
    seeing.window.composer.edit.insertFromMimeData(copied)
    qtbot.waitUntil(lambda: counted(seeing))
    assert chips(seeing)[0].startswith("Pasted picture, 70 × 60")
    ask(qtbot, seeing, "What is it?")
    assert len(engine.requests[-1].messages[-1].pictures) == 1


def test_a_picture_says_enough_without_words(
    seeing: Application, engine: ScriptedEngine, photo: Path, notes: Path, qtbot: QtBot
) -> None:
    composer = seeing.window.composer
    send = find(composer, RoundButton, "Send")
    assert not send.isEnabled()
    composer.edit.setPlainText(" \n ")
    assert not send.isEnabled()
    attach(seeing, qtbot, photo)
    assert send.isEnabled()
    send.click()
    qtbot.waitUntil(lambda: seeing.chat.rowCount() == 2 and not seeing.session.state.busy)
    asked = engine.requests[-1].messages[-1]
    assert (asked.content, asked.pictures) == ("", (picture(1),))
    assert not send.isEnabled()
    assert seeing.library.title(seeing.chat.conversation.id) == "photo.png"
    attach(seeing, qtbot, notes)
    assert not send.isEnabled(), "a text needs a question"
