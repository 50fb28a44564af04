"""The right half of the model dialog: one model's facts, verdict, what can be done with it, and its card."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from app import wording
from app.language import said, said_error
from app.shelf import Details
from app.theme import EDGE, GROUP, INSIDE, RELATED, Theme
from app.views import model_dialog_words as words
from app.views.body import Body
from app.views.controls import Pane
from app.views.inputs import ChoiceBox
from app.views.model_dialog_rows import Row
from core.errors import AccessDenied, HeteGenError, UnsupportedModel
from core.hub.verdict import Verdict, Wishes

FORMATS = (("auto", "Format: automatic"), ("bf16", "As stored"), ("int8", "8-bit"), ("int4", "4-bit"))
CONTEXTS = (None, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
BUTTONS = (
    ("use", "Use this model"),
    ("download", "Download"),
    ("resume", "Resume"),
    ("pause", "Pause"),
    ("retry", "Try again"),
    ("cancel", "Cancel download"),
    ("verify", "Check files"),
    ("repair", "Repair"),
    ("folder", "Open folder"),
    ("remove", "Delete…"),
)
"""(id, words) of everything that can be done with a model, in order; the first that is shown is the main one."""


class DetailsPane(Pane):
    """Signals: `wished(Wishes)`; `pressed(button id)`; `token_given(text)`; `link(address)`."""

    wished = Signal(object)
    pressed = Signal(str)
    token_given = Signal(str)
    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "window", ("left",), parent)
        self._row: Row | None = None
        self._details: Details | None = None
        self._note = ""
        self._error: HeteGenError | None = None
        self._title, self._facts, self._popular = self._label(), self._label(), self._label()
        self._verdict_icon, self._verdict, self._reason = QLabel(self), self._label(), self._label()
        self._sizes, self._memory = self._label(), self._label()
        self._problem, self._licence, self._hint = self._label(), self._label(), self._label()
        self._token_field = QLineEdit(self)
        self._use_token = QPushButton(self.tr("Use token"), self)
        self._format, self._context = ChoiceBox(theme, self), ChoiceBox(theme, self)
        self.buttons = {id: QPushButton(self.tr(text), self) for id, text in BUTTONS}
        self._body = Body(theme)
        self._fill_boxes()
        self._lay_out()
        self._connect()
        self._on_theme()
        self.show_row(None)

    def show_row(self, row: Row | None) -> None:
        """Another model, or the same with another state."""
        if row is None or self._row is None or row.id != self._row.id:
            self._details, self._note, self._error = None, "", None
            self._show_card("")
        self._row = row
        self._show()

    def show_details(self, details: Details) -> None:
        """More is known."""
        if self._row is None or details.id != self._row.id:
            return
        before, self._details = self._details, details
        if before is None or before.card != details.card:
            self._show_card(words.plain_card(details.card))
        if not details.asking:
            self._note = ""
        self._show()

    def show_note(self, note: str, error: HeteGenError | None = None) -> None:
        """What came of checking, deleting and the like."""
        self._note, self._error = note, error
        self._show()

    @property
    def shown(self) -> str:
        """The id of the model that is shown, or ""."""
        return self._row.id if self._row else ""

    def wishes(self) -> Wishes:
        """What the boxes say."""
        return Wishes(str(self._format.currentData()), self._context.currentData())

    def _label(self) -> QLabel:
        label = QLabel(self)
        label.setWordWrap(True)
        label.setTextFormat(Qt.TextFormat.PlainText)
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        return label

    def _fill_boxes(self) -> None:
        for value, text in FORMATS:
            self._format.addItem(self.tr(text), value)
        for tokens in CONTEXTS:
            text = self.tr("{} tokens").format(f"{tokens:,}") if tokens else self.tr("Context: automatic")
            self._context.addItem(text, tokens)
        self._format.setAccessibleName(self.tr("Weight format"))
        self._context.setAccessibleName(self.tr("Context"))
        self._token_field.setPlaceholderText(self.tr("Hugging Face token (hf_…)"))
        self._token_field.setAccessibleName(self.tr("Hugging Face token"))
        self._token_field.setEchoMode(QLineEdit.EchoMode.Password)
        self._licence.setTextFormat(Qt.TextFormat.RichText)
        self._licence.setTextInteractionFlags(Qt.TextInteractionFlag.LinksAccessibleByMouse)

    def _lay_out(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(GROUP, GROUP, GROUP, EDGE)
        column.setSpacing(RELATED)
        for widget in (self._title, self._facts, self._popular):
            column.addWidget(widget)
        column.addSpacing(INSIDE)
        column.addLayout(self._verdict_grid())
        wishes = QHBoxLayout()
        for box in (self._format, self._context):
            wishes.addWidget(box, 1)
        column.addLayout(wishes)
        column.addWidget(self._problem)
        column.addWidget(self._licence)
        column.addLayout(self._token_row())
        column.addSpacing(INSIDE)
        column.addWidget(self._body)
        column.addStretch(1)
        self._scroll = QScrollArea(self)
        self._scroll.setWidget(inside)
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self._scroll.setAccessibleName(self.tr("About this model"))
        self._hint.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._hint.setText(self.tr("Choose a model to see whether it runs on this computer, and how fast."))
        bar = self._bar = Pane(self._theme, "side", ("top",), self)
        row = QHBoxLayout(bar)
        row.setContentsMargins(GROUP, RELATED, GROUP, RELATED)
        row.setSpacing(RELATED)
        for id, _ in BUTTONS:
            row.addWidget(self.buttons[id])
        row.addStretch(1)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(1, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(self._hint, 1)
        whole.addWidget(self._scroll, 1)
        whole.addWidget(bar)

    def _verdict_grid(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(INSIDE)
        grid.setColumnStretch(1, 1)
        grid.addWidget(self._verdict_icon, 0, 0)
        for at, label in enumerate((self._verdict, self._reason, self._sizes, self._memory)):
            grid.addWidget(label, at, 1)
        return grid

    def _token_row(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.addWidget(self._token_field, 1)
        row.addWidget(self._use_token)
        return row

    def _connect(self) -> None:
        for id, button in self.buttons.items():
            button.setObjectName(id)
            button.setAutoDefault(False)
            button.clicked.connect(self._on_pressed)
        self._format.currentIndexChanged.connect(self._on_wish)
        self._context.currentIndexChanged.connect(self._on_wish)
        self._use_token.setAutoDefault(False)
        self._use_token.clicked.connect(self._on_token)
        self._token_field.returnPressed.connect(self._on_token)
        self._licence.linkActivated.connect(self.link)
        self._body.link.connect(self.link)
        self._body.grown.connect(self._measure)
        self._theme.changed.connect(self._on_theme)

    def _show_card(self, text: str) -> None:
        # Not finished first: a body that is finished takes more text for the rest of the same one.
        self._body.feed("", False)
        self._body.feed(text, True)

    def _show(self) -> None:
        row, details = self._row, self._details
        self._scroll.setVisible(row is not None)
        self._bar.setVisible(row is not None)
        self._hint.setVisible(row is None)
        self._show_buttons()
        if row is None:
            return
        self._title.setText(row.id)
        self._facts.setText(self._facts_words(row))
        info = details.info if details and details.info else row.info
        self._popular.setText(words.info_line(info) if info and info.downloads else "")
        self._popular.setVisible(bool(self._popular.text()))
        self._show_verdict(details.verdict if details and details.verdict else row.verdict)
        self._show_problem(row)

    def _facts_words(self, row: Row) -> str:
        parts = [self.tr(row.known.summary)] if row.known else []
        verdict = self._details.verdict if self._details else None
        count = verdict.parameters if verdict else row.known.parameters if row.known else 0
        count = count or (row.info.parameter_count if row.info else 0)
        license = row.known.license if row.known else row.info.license if row.info else ""
        if self._details and self._details.info:
            license = self._details.info.license or license
        download = self._details.download_bytes if self._details else 0
        download = download or (row.known.download_bytes if row.known else row.here.total if row.here else 0)
        line = (
            self.tr("{}, {} on this computer, licence {}.")
            if row.is_whole
            else self.tr("{}, {} to download, licence {}.")
        )
        parts.append(line.format(words.parameters(count), words.size(download), license or wording.UNKNOWN))
        return "\n".join(parts)

    def _show_verdict(self, verdict: Verdict | None) -> None:
        for widget in (self._verdict_icon, self._reason, self._sizes, self._memory):
            widget.setVisible(verdict is not None)
        if verdict is None:
            asking = self._details is None or self._details.asking
            self._verdict.setText(self.tr("Asking whether it fits…") if asking else self.tr("Whether it fits: n/a"))
            self._verdict.setStyleSheet(f"color: {self._theme.colours.muted};")
            return
        word, icon, token = words.VERDICTS[verdict.kind]
        word = self.tr(word)
        self._verdict_icon.setPixmap(self._theme.pixmap(icon, token, 20, self.devicePixelRatioF()))
        speed = words.speed(verdict)
        self._verdict.setText(f"{word}: {speed}, {self.tr(words.CONFIDENCE[verdict.confidence])}" if speed else word)
        self._verdict.setStyleSheet(f"color: {getattr(self._theme.colours, token)}; font-weight: 600;")
        self._reason.setText(said(verdict.reason))
        self._sizes.setText(words.sizes(verdict))
        lines = [f"{device}: {taken}" for device, taken in words.memory(verdict)]
        context = self.tr("Context: {} of {} tokens").format(f"{verdict.context:,}", f"{verdict.context_limit:,}")
        self._memory.setText("\n".join([*lines, context]))

    def _show_problem(self, row: Row) -> None:
        failed = row.transfer.error if row.transfer else None
        asked = self._details.error if self._details else None
        error = self._error or failed or asked
        self._problem.setText(said_error(error) if error else self._note)
        self._problem.setVisible(bool(self._problem.text()))
        token = "danger" if error else "muted"
        self._problem.setStyleSheet(f"color: {getattr(self._theme.colours, token)};")
        denied = isinstance(error, AccessDenied)
        for widget in (self._licence, self._token_field, self._use_token):
            widget.setVisible(denied)
        if denied:
            page = f"https://huggingface.co/{row.id}"
            accent = self._theme.colours.accent
            label = self.tr("Licence and access of {}").format(row.id)
            self._licence.setText(f'<a style="color: {accent}" href="{page}">{label}</a>')

    def _show_buttons(self) -> None:
        shown = possible(self._row, can_repair=self._error is not None)
        if self._details and isinstance(self._details.error, UnsupportedModel):
            shown.discard("download")
        main = next((id for id, _ in BUTTONS if id in shown), "")
        for id, button in self.buttons.items():
            button.setVisible(id in shown)
            button.setProperty("primary", id == main and id not in ("pause", "verify"))
            button.style().unpolish(button)
            button.style().polish(button)

    def _measure(self) -> None:
        width = self._scroll.viewport().width() - 2 * GROUP
        if width > 0:
            self._body.setFixedHeight(self._body.measure(width))

    def showEvent(self, event: QShowEvent) -> None:
        # A label that gets another parent under an application-wide style sheet forgets its font.
        self._on_theme()
        super().showEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._measure()

    @Slot()
    def _on_pressed(self) -> None:
        self.pressed.emit(self.sender().objectName())

    @Slot()
    def _on_wish(self) -> None:
        self.wished.emit(self.wishes())

    @Slot()
    def _on_token(self) -> None:
        if text := self._token_field.text().strip():
            self._token_field.clear()
            self.token_given.emit(text)

    @Slot()
    def _on_theme(self) -> None:
        self._title.setFont(self._theme.font("heading3"))
        for label in (self._popular, self._sizes, self._memory, self._hint):
            label.setFont(self._theme.font("small"))
            label.setStyleSheet(f"color: {self._theme.colours.muted};")
        self._show()
        self.update()


def possible(row: Row | None, *, can_repair: bool = False) -> set[str]:
    """What can be done with a model in its state."""
    if row is None:
        return set()
    phase = row.transfer.phase if row.transfer else None
    if phase in ("queued", "running"):
        return {"pause", "cancel"}
    if phase == "failed":
        return {"retry", "cancel"}
    if row.is_whole:
        # A folder used in place has no commit: there is nothing to compare or to repair it with.
        managed = {"verify", "repair"} if row.here and row.here.revision else set()
        return {"use", "folder", "remove"} | (managed if can_repair else managed - {"repair"})
    if row.is_loading:
        return {"resume", "cancel"}
    return {"download"}
