"""Scenes of marks in the list, of search hits, of replies with signs of every kind, and of low windows."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLineEdit

from app.notices import notices
from core.errors import ModelFailed
from core.events import Loading, Piece
from tests.app.find import find
from tests.app.screenshots import Stage, loading, reply
from tests.app.scripted_engine import answer
from tests.app.waiting import until

RICH = """Claims need sources[^1], and good ones[^2].

A turn by $\\theta$:

$$\\begin{pmatrix} \\cos\\theta & -\\sin\\theta \\\\ \\sin\\theta & \\cos\\theta \\end{pmatrix}$$

and $\\hat{x} = \\frac{a_1 + b^2}{\\sqrt{2}}$ with $\\begin{bmatrix} 1 & 0 \\\\ 0 & 1 \\end{bmatrix}$.

البحر عميق، وفيه ثلاثة أشياء:

- الماء
- الملح
  1. أولاً
  2. ثانياً

> اقتباس قصير

- [x] one thing done
- [ ] another one to do

[^1]: *The first source*, pages 12 to 14, which is long enough that its words need a second line in this column.
[^2]: https://example.org/second
"""


def rich(stage: Stage) -> None:
    """A reply with footnotes, matrices, and lists that run from right to left."""
    stage.show()
    stage.engine.replies = [answer(RICH)]
    stage.ask("Show me every sign that you know.")
    stage.settle(0.1)
    stage.app.window.transcript.show_turn(stage.app.chat.turn(0).id)


def marks(stage: Stage) -> None:
    """A reply that was not seen, one that is being written, and questions that wait, in one of them."""
    stage.show()
    app = stage.app
    stage.engine.replies = [answer("Short.")]
    opened: dict[str, str] = {}
    for title in ("Plan a trip to the sea", "Rewrite a letter to the landlord", "What is a KV cache?"):
        app.commands.act("new_chat")
        stage.ask(title)
        opened[title] = app.chat.conversation.id
    app.library.set_unread(opened["Plan a trip to the sea"], unread=True)
    app.sidebar.pinned.emit(app.chat.conversation.id, True)
    stage.engine.replies = [[Piece("Half a sentence of"), *answer("")]]
    stage.engine.pause_at = 1
    app.commands.act("new_chat")
    app.session.submit("And why does a split help?")
    until(lambda: app.session.state.phase == "replying" and stage.engine.paused)
    for title in ("Something quite different", "And another question that has to wait for its turn"):
        app.commands.act("new_chat")
        app.window.composer.set_text(title)
        QTest.keyClick(app.window.composer.edit, Qt.Key.Key_Return)


def hits(stage: Stage) -> None:
    """Search hits with snippets, one of them opened."""
    reply(stage)
    find(stage.app.sidebar, QLineEdit, stage.app.sidebar.tr("Search conversations")).setText("link")
    until(lambda: bool(stage.app.sidebar.list.model().index(0, 0).data()))
    stage.settle(0.4)
    stage.app.library.open(stage.app.chat.conversation.id, stage.app.chat.turn(1).id)


def stacked(stage: Stage) -> None:
    """As many notices as there is room for, below the progress of a load."""
    loading(stage)
    for notice in (
        notices.for_error(ModelFailed("The model failed.", "", "Try again.")),
        notices.replanned("The card has less free memory than before."),
        notices.answers_elsewhere(),
    ):
        stage.app.window.notices.add(notice)


def low(scene: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """Play a scene in a low window."""

    def play(stage: Stage) -> None:
        stage.app.window.resize(900, 560)
        scene(stage)

    return play


def half_loaded(stage: Stage) -> None:
    """A load with a long name."""
    loading(stage)
    stage.app.session.model.change(source="/models/" + "A-very-long-name-" * 6, loading=Loading("place", 0.81))


WINDOW_SCENES: dict[str, Callable[[Stage], None]] = {
    "rich": rich,
    "marks": marks,
    "hits": hits,
    "stacked": stacked,
    "half_loaded": half_loaded,
    "low_reply": low(reply),
    "low_marks": low(marks),
    "low_stacked": low(stacked),
    "low_empty": low(lambda stage: stage.show()),
}
