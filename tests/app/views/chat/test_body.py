"""Rendered replies: what is shown, what is never loaded, and the cost."""

import re
from collections.abc import Callable, Iterator

import pytest
from PySide6.QtCore import QPoint, Qt, QUrl
from PySide6.QtGui import QGuiApplication, QTextCharFormat, QTextCursor, QTextDocument, QTextTable
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from app.settings.theme import Theme
from app.views.chat.body import Body
from app.views.chat.prose import STEP, ProseWriter
from app.views.chat.text import LONGEST_DOCUMENT, CodeView, ProseView, TextView
from app.views.controls.controls import IconButton
from tests.app.bad_markdown import HOSTILE
from tests.app.find import find

WIDTH = 760


@pytest.fixture
def make_body(qtbot: QtBot) -> Iterator[Callable[[], Body]]:
    ports: list[QWidget] = []

    def make() -> Body:
        port = QWidget()
        qtbot.addWidget(port)
        port.resize(WIDTH, 780)
        body = Body(Theme("light"), port)
        port.show()
        ports.append(port)
        return body

    yield make
    for port in ports:
        port.hide()


@pytest.fixture
def body(make_body: Callable[[], Body]) -> Body:
    return make_body()


def lay_out(body: Body) -> None:
    height = body.measure(WIDTH)
    body.setGeometry(0, 780 - height, WIDTH, height)


def show(body: Body, text: str) -> str:
    """Feed the whole text and return the text shown."""
    body.feed(text, True)
    while not body.settled:
        QApplication.processEvents()
        lay_out(body)
    lay_out(body)
    QApplication.processEvents()
    return "\n".join(edit.toPlainText() for edit in body.edits())


def stream(body: Body, text: str, size: int = 7) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.views.chat.body.REST", 0)
        for at in range(0, len(text), size):
            body.feed(text[: at + size], False)
    return show(body, text)


def prose(body: Body) -> QTextDocument:
    return next(segment for segment in body.segments if isinstance(segment, ProseView)).document()


def format_of(document: QTextDocument, word: str):  # type: ignore[no-untyped-def]
    return document.find(word).charFormat()


EVERYTHING = """# One
## Two
Text with **bold**, *slanted*, ~~gone~~, `code` and [a link](https://example.org).

- item
  - inner
    1. number
- [x] done
- [ ] open

> quoted
> > twice

| a | b |
|--:|:-:|
| 1 | 2 |

---

```python
print("hello")
```

Formula $x^2$ and \\(y_1\\).

$$
a = b
+ c
$$

\\begin{align*}
d &= e \\\\
  &= f
\\end{align*}

Claims[^1] of[^note2] three.[^by-hand] And a class [^abc] of characters, as in q[^use]*.

[^1]: The first source,
continued.
[^note2]: https://example.org/second
[^by-hand]: Counted.
"""


def test_every_construct_has_its_form(body: Body) -> None:
    text = show(body, EVERYTHING)
    document = prose(body)
    assert format_of(document, "bold").fontWeight() > 500
    assert format_of(document, "slanted").fontItalic()
    assert format_of(document, "gone").fontStrikeOut()
    assert format_of(document, "a link").anchorHref() == "https://example.org"
    assert document.find("One").charFormat().fontPointSize() > document.find("Two").charFormat().fontPointSize()
    for line in (
        "•\titem",
        "•\tinner",
        "1.\tnumber",
        "☑\tdone",
        "☐\topen",
        'print("hello")',
        "Formula x² and y₁.",
        "a = b + c",
    ):
        assert line in text
    assert "a = b + c" in text
    assert re.search("d = e\\s= f", text)
    assert "Claims1 ofnote2 three.by-hand And a class [^abc] of characters, as in q[^use]*." in text
    assert "1\tThe first source, continued.\nnote2\thttps://example.org/second\nby-hand\tCounted." in text
    assert any(isinstance(frame, QTextTable) for frame in document.rootFrame().childFrames())
    assert [type(segment) for segment in body.segments] == [ProseView, CodeView, ProseView]
    notes = body.segments[2].edit if isinstance(body.segments[2], CodeView) else body.segments[2]
    raised = QTextCharFormat.VerticalAlignment.AlignSuperScript
    assert format_of(notes.document(), "note2").verticalAlignment() == raised
    assert format_of(notes.document(), "by-hand").verticalAlignment() == raised
    assert all(edit.accessibleName() for edit in body.edits())
    assert format_of(notes.document(), "second").isAnchor()


@pytest.mark.parametrize("size", [1, 3, 11])
def test_streaming_shows_the_same_as_all_at_once(body: Body, qtbot: QtBot, size: int) -> None:
    streamed = stream(body, EVERYTHING, size)
    port = QWidget()
    qtbot.addWidget(port)
    assert streamed == show(Body(Theme("light"), port), EVERYTHING)


def test_tags_for_which_markdown_has_no_signs_are_read(body: Body) -> None:
    text = show(
        body,
        "H<sub>2</sub>O, x<SUP>10</SUP>, <u>under</u>, <kbd>Ctrl</kbd><br/>next\n\n"
        "The tags <u> and </u>, the <br> tag and <b>bold</b>.\n\n| a |\n|---|\n| one<br>two <br> three |",
    )
    document = prose(body)
    align = QTextCharFormat.VerticalAlignment
    assert "H2O, x10, under, Ctrl\nnext" in text
    assert "The tags <u> and </u>, the <br> tag and <b>bold</b>." in text
    assert re.search(r"one\stwo \sthree", text)
    assert format_of(document, "2").verticalAlignment() == align.AlignSubScript
    assert format_of(document, "10").verticalAlignment() == align.AlignSuperScript
    assert format_of(document, "under").fontUnderline()


def test_html_is_text_and_images_are_links(body: Body) -> None:
    text = show(
        body,
        "<b>x</b> <script>alert(1)</script>\n\n![cat](https://example.org/cat.png) and ![](http://evil.example/a.png)",
    )
    assert "<script>alert(1)</script>" in text
    assert "[image: cat]" in text
    assert "\ufffc" not in text


@pytest.mark.parametrize(
    "address", ["http://evil.example/a.png", "file:///etc/passwd", "\\\\host\\share\\a.png", "qrc:/x"]
)
def test_nothing_is_ever_loaded(body: Body, address: str, qtbot: QtBot) -> None:
    view = TextView(Theme("light"))
    qtbot.addWidget(view)
    kind = QTextDocument.ResourceType.ImageResource.value
    assert view.loadResource(kind, QUrl(address)) is None
    assert view.document().resource(kind, QUrl(address)) is None


def test_dangerous_links_are_not_links(body: Body) -> None:
    show(body, "[x](javascript:alert(1)) [y](file:///etc/passwd) [z](data:text/html,1)")
    for word in ("x", "y", "z"):
        assert not format_of(prose(body), word).isAnchor()


def test_a_pressed_link_is_told_and_not_opened(body: Body, qtbot: QtBot) -> None:
    show(body, "[somewhere](https://example.org/a)")
    view = body.segments[0]
    assert isinstance(view, ProseView)
    cursor = view.document().find("somewhere")
    cursor.setPosition(cursor.selectionStart() + 3)
    with qtbot.waitSignal(body.link) as told:
        QTest.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.cursorRect(cursor).center())
    assert told.args == ["https://example.org/a"]


def test_code_is_copied_as_it_was_written(body: Body) -> None:
    code = "x = 1\n\ty = '" + "long " * 2000 + "'\n"
    show(body, f"```python\n{code}```\n")
    view = body.segments[0]
    assert isinstance(view, CodeView)
    find(view, IconButton, "Copy code").click()
    assert QGuiApplication.clipboard().text() == code.rstrip("\n")


def test_a_selection_runs_over_prose_and_code(body: Body) -> None:
    show(body, "Before the code.\n\n```\ninside\n```\n\nAfter the code.")
    first, _, last = body.edits()
    _drag(body, first, 7, last, 5)
    assert body.selected_text() == "the code.\ninside\nAfter"
    QTest.keyClick(last, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    assert QGuiApplication.clipboard().text() == "the code.\ninside\nAfter"


def _drag(body: Body, first: object, start: int, last: object, end: int) -> None:
    def point(edit, position: int) -> QPoint:  # type: ignore[no-untyped-def]
        cursor = QTextCursor(edit.document())
        cursor.setPosition(position)
        return edit.cursorRect(cursor).center()

    begin = point(first, start)
    QTest.mousePress(first.viewport(), Qt.MouseButton.LeftButton, pos=begin)  # type: ignore[attr-defined]
    target = first.viewport().mapFromGlobal(last.viewport().mapToGlobal(point(last, end)))  # type: ignore[attr-defined]
    QTest.mouseMove(first.viewport(), target)  # type: ignore[attr-defined]
    QTest.mouseRelease(first.viewport(), Qt.MouseButton.LeftButton, pos=target)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_replies_settle(make_body: Callable[[], Body], name: str) -> None:
    body = make_body()
    body.feed(HOSTILE[name], True)
    while not body.settled:
        QApplication.processEvents()
        lay_out(body)
    assert body.measure(WIDTH) > 0


def test_a_token_costs_the_same_however_long_the_reply_is(
    make_body: Callable[[], Body], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in rendered characters; tests.bench.reading measures seconds."""
    text = ("A line with **bold** words and `code` in it.\n\n" + "- an item of a list\n" * 3 + "\n") * 400
    rendered: list[int] = []
    write = ProseWriter.write

    def counted(writer: ProseWriter, cursor: QTextCursor, words: str, level: int) -> None:
        rendered.append(len(words))
        write(writer, cursor, words, level)

    monkeypatch.setattr(ProseWriter, "write", counted)
    body, costs = make_body(), []
    for at in range(0, len(text), 40):
        rendered.clear()
        body.feed(text[: at + 40], False)
        costs.append(sum(rendered))
    assert max(costs) < 500
    assert max(segment.document().characterCount() for segment in body.segments if isinstance(segment, ProseView)) < (
        2 * LONGEST_DOCUMENT
    )


def test_lists_and_quotes_that_run_from_the_right_are_whole(body: Body) -> None:
    word = "\u05e9\u05dc\u05d5\u05dd"
    show(body, f"1. {word}\n   - {word}\n\n- [x] {word}\n\n> {word}")
    (view,) = body.edits()
    block, ends, texts = view.document().begin(), [], []
    while block.isValid():
        line = block.layout().lineAt(0)
        start = view.document().documentLayout().blockBoundingRect(block).left()
        box = line.naturalTextRect().translated(start, 0)
        assert box.left() >= 0, block.text()
        assert box.right() <= WIDTH + 1, block.text()
        ends.append(round(box.right()))
        texts.append(line.cursorToX(block.text().find("\t") + 1)[0])
        block = block.next()
    assert ends[0] == ends[2], "numbers and boxes begin at the right edge"
    assert ends[1] == ends[3] == WIDTH - STEP, "nested items and quotes are indented from the right"
    assert texts[0] == texts[2] <= WIDTH - STEP, "the text of items is in one line, clear of its marks"
