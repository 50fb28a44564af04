"""Documents that do not fit: a larger context at one press, or passages for each question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.application import Application
from app.conversations.conversation import PARTS
from app.notices.notices import Notice
from app.views.chat.chips import Chip
from app.views.chat.message import ReplyMessage
from app.views.chat.text import PlainView
from core.events import Loaded, Loading
from core.planning.planner import place
from core.spec import Budget
from tests.app.conftest import Start
from tests.app.find import find
from tests.app.scripted_engine import END, MODEL, ScriptedEngine, answer
from tests.core.documents.made import pdf
from tests.core.machines import DESKTOP, model

CITIES = (
    "Aarhus", "Bergamo", "Cordoba", "Dresden", "Evora", "Fukuoka", "Girona", "Haarlem", "Innsbruck", "Jakarta",
    "Krakow", "Ljubljana", "Maastricht", "Nantes", "Odense", "Porto", "Quito", "Riga", "Salzburg", "Tampere",
)  # fmt: skip
FACTS = {city: 7 + 14 * place for place, city in enumerate(CITIES)}
"""The page (from 1) with the harbour fee of each city."""
SUBJECTS = (
    "The committee",
    "A visitor",
    "The harbour office",
    "Every captain",
    "Nobody in the city",
    "The annual report",
)
DEEDS = ("spoke of fees", "measured the tide", "repaired the crane", "counted the ships", "wrote a letter", "slept")


def page(number: int) -> str:
    """Return a page of similar sentences, and one fact on some pages."""
    lines = [
        f"{SUBJECTS[(number + n) % 6]} {DEEDS[(number * 5 + n * n) % 6]} on day {n} of year {number}."
        for n in range(12)
    ]
    fact = [f"In {city} the mooring of a barge costs {900 + at} crowns." for city, at in FACTS.items() if at == number]
    return " ".join([*lines[:6], *fact, *lines[6:]])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pdf(tmp_path_factory.mktemp("long") / "report.pdf", [page(number) for number in range(1, 301)])


def planned(context: int) -> Loaded:
    spec = model("llama-3.1-8b")
    plan = place(spec, DESKTOP, Budget(context=context, format="int8"))
    return replace(MODEL, context=context, plan=plan, spec=spec, hardware=DESKTOP)


@pytest.fixture
def engine() -> ScriptedEngine:
    short = replace(END, context_used=0)
    return ScriptedEngine(answer("It costs crowns.", stats=short), load=[Loading("weights", 0.5), planned(4096)])


@pytest.fixture
def app(start: Start, engine: ScriptedEngine) -> Application:
    return start(engine)


def attach(app: Application, qtbot: QtBot, path: Path) -> None:
    app.window.files.emit([path])
    qtbot.waitUntil(lambda: all(each.counted for each in app.attachments.pending))
    documents = [each.document for each in app.attachments.pending]
    if app.attachments.in_parts():
        qtbot.waitUntil(lambda: all(each is not None and app.long.is_ready(each) for each in documents))


def ask(app: Application, qtbot: QtBot, text: str) -> None:
    asked = app.chat.rowCount()
    app.window.composer.submitted.emit(text)
    assert app.chat.rowCount() == asked + 2
    qtbot.waitUntil(lambda: not app.session.state.busy)


def last_notice(app: Application) -> Notice:
    return app.window.notices.notices[-1]


def test_whole_where_it_fits_and_by_the_right_pages_where_it_does_not(
    app: Application, engine: ScriptedEngine, report: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, report)
    right = 0
    for city, at in FACTS.items():
        ask(app, qtbot, f"What does the mooring of a barge in {city} cost?")
        excerpts = app.chat.conversation.excerpts(app.chat.turn(app.chat.rowCount() - 2).id)
        right += at in excerpts[0].pages and f"{900 + at} crowns" in engine.requests[-1].messages[-1].content
    assert right >= 19
    engine.load_events = [replace(MODEL, context=131_072)]
    app.commands.act("reload")
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    app.commands.act("new_chat")
    attach(app, qtbot, report)
    ask(app, qtbot, "What does a mooring cost?")
    content = engine.requests[-1].messages[-1].content
    assert all(page(number) in content for number in range(1, 301))


def test_a_follow_up_finds_other_parts_and_leaves_the_earlier_turns_as_they_were(
    app: Application, engine: ScriptedEngine, report: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, report)
    ask(app, qtbot, "What does the mooring of a barge cost?")
    ask(app, qtbot, "And what does the mooring of a barge cost elsewhere?")
    first, second = (request.messages for request in engine.requests[-2:])
    assert second[: len(first)] == first
    one, other = (app.chat.conversation.excerpts(app.chat.turn(row).id)[0] for row in (0, 2))
    assert len(set(other.spans) - set(one.spans)) >= len(other.spans) - 1 > 0
    app.session.regenerate(app.chat.turn(3).id)
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert engine.requests[-1].messages == second


def test_the_parts_come_back_from_the_disk_and_an_edited_question_finds_its_own(
    app: Application, engine: ScriptedEngine, report: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, report)
    ask(app, qtbot, "What does the mooring of a barge in Riga cost?")
    kept, id = engine.requests[-1].messages, app.chat.conversation.id
    app.commands.act("new_chat")
    app.library.open(id, "")
    assert app.chat.conversation.messages(app.chat.turn(0).id) == kept
    (excerpt,) = app.chat.conversation.excerpts(app.chat.turn(0).id)
    qtbot.waitUntil(lambda: app.long.is_ready(excerpt.document))
    assert app.session.edit(app.chat.turn(0).id, "What does the mooring of a barge in Porto cost?")
    qtbot.waitUntil(lambda: not app.session.state.busy)
    assert f"{900 + FACTS['Porto']} crowns" in engine.requests[-1].messages[-1].content


def test_the_reply_says_how_much_was_read_and_shows_it(app: Application, report: Path, qtbot: QtBot) -> None:
    attach(app, qtbot, report)
    chip = app.window.chips.findChild(Chip)
    assert chip is not None
    words = chip.findChild(QPushButton)
    assert words is not None
    assert words.accessibleName().endswith("read in parts")
    ask(app, qtbot, "What does the mooring of a barge in Riga cost?")
    reply = app.chat.turn(1)
    qtbot.waitUntil(lambda: isinstance(app.window.transcript.view_of(reply.id), ReplyMessage))
    view = app.window.transcript.view_of(reply.id)
    assert isinstance(view, ReplyMessage)
    (quotes,) = view.quotes
    pages = app.chat.conversation.excerpts(app.chat.turn(0).id)[0].pages
    assert quotes.button.text() == f"{len(pages)} of 300 pages of report.pdf were read"
    quotes.button.click()
    shown = find(quotes, PlainView, "Parts of the document").toPlainText()
    assert f"Page {FACTS['Riga']}\n" in shown
    assert f"{900 + FACTS['Riga']} crowns" in shown


def test_one_press_raises_the_context_to_hold_it_whole(
    app: Application, engine: ScriptedEngine, report: Path, qtbot: QtBot
) -> None:
    attach(app, qtbot, report)
    told = last_notice(app)
    assert (told.action, told.button) == ("enlarge", "Raise the context")
    needed = sum(each.tokens for each in app.attachments.pending)
    larger = app.attachments.larger
    assert larger is not None
    assert needed < larger.cost.context <= needed + 3 * 1024
    assert f"A context of {larger.cost.context:,} holds them whole, for" in told.sentence
    engine.load_events = [planned(larger.cost.context)]
    app.window.notices.acted.emit(told)
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    assert app.session.state.options.context == larger.cost.context
    ask(app, qtbot, "What does it cost?")
    assert PARTS not in app.chat.turn(0).receipt


def test_a_context_that_the_machine_cannot_hold_is_not_offered(
    app: Application, engine: ScriptedEngine, tmp_path: Path, qtbot: QtBot
) -> None:
    (tmp_path / "words.txt").write_text("word " * 200_000)
    attach(app, qtbot, tmp_path / "words.txt")
    assert last_notice(app).action == ""
    ask(app, qtbot, "Summarize it")
    assert app.chat.conversation.excerpts(app.chat.turn(0).id)[0].spans[0].start == 0


def test_a_question_before_the_index_is_made_stays_in_the_field(
    app: Application, report: Path, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(app, qtbot, report)
    monkeypatch.setattr(app.long, "is_ready", lambda document: False)
    app.window.composer.submitted.emit("What does it cost?")
    assert app.chat.rowCount() == 0
    assert app.window.composer.edit.toPlainText() == "What does it cost?"
    assert last_notice(app).title == "The files are still being read"
