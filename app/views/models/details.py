"""The right half of the model dialog: one model's facts, verdict, actions and card."""

from __future__ import annotations

from collections.abc import Collection

from PySide6.QtCore import QEvent, QObject, Qt, Signal, Slot
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QPushButton, QScrollArea, QVBoxLayout, QWidget

from app.catalog.catalog import Details
from app.i18n import formatting
from app.i18n.translator import said_error
from app.settings.theme import EDGE, GROUP, INSIDE, RELATED, Theme
from app.views.chat.body import Body
from app.views.controls.controls import Pane
from app.views.controls.focus_ring import FocusRing
from app.views.controls.inputs import ChoiceBox
from app.views.controls.tab_stops import holds_focus
from app.views.models import words
from app.views.models.access import AccessForm
from app.views.models.file_box import LEAST_LETTERS, FileBox
from app.views.models.fit import FitGuide, FitView, wrapping_label
from app.views.models.outgrown import Outgrown
from app.views.models.rows import Row
from core.errors import AccessDenied, HeteGenError, UnsupportedModel
from core.hub.fit import Fit, Wishes
from core.spec import format_named

FORMATS = (("auto", "Format: automatic"), ("bf16", "As stored"), ("int8", "8-bit"), ("int4", "4-bit"))
SIDE_BY_SIDE = 420
"""Narrowest width, in pixels, with the two combo boxes side by side."""
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
"""(id, words) of every action on a model, in order; the first one shown is the primary button."""


class DetailsPane(Pane):
    """Shows one model.

    Signals: `wished(Wishes)`; `pressed(button id)`; `token_given(text)`; `link(address)`.
    """

    wished = Signal(object)
    pressed = Signal(str)
    token_given = Signal(str)
    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "window", ("left",), parent)
        self._row: Row | None = None
        self.details: Details | None = None
        """What is known of the model shown."""
        self._note = ""
        self._error: HeteGenError | None = None
        self._title, self._facts, self._popular, self._problem = (wrapping_label(self) for _ in range(4))
        self._guide, self._verdict, self.access = (
            FitGuide(theme, self),
            FitView(theme, self),
            AccessForm(theme, self),
        )
        self.files = FileBox(theme, self)
        self.outgrown = Outgrown(theme, self)
        self._format, self._context = ChoiceBox(theme, self), ChoiceBox(theme, self)
        self.buttons = {id: QPushButton(self.tr(text), self) for id, text in BUTTONS}
        self._body = Body(theme)
        self._fill_boxes()
        self._lay_out()
        self._connect()
        self._on_theme()
        self.show_row(None)

    def show_row(self, row: Row | None) -> None:
        """Show another model, or a new state of the same one."""
        if row is None or self._row is None or row.id != self._row.id:
            self.details, self._note, self._error = None, "", None
            self.files.forget()
            self._show_card("")
        self._row = row
        self._show()

    def show_details(self, details: Details, here: Collection[str] = ()) -> None:
        """Show more details. `here`: paths of the repository's files that are downloaded or downloading."""
        if self._row is None or details.id != self._row.id:
            return
        before, self.details = self.details, details
        if before is None or before.card != details.card:
            self._show_card(words.plain_card(details.card))
        if not details.asking:
            self._note = ""
        self.files.show_choices(details.choices, here)
        self._show()

    def show_note(self, note: str, error: HeteGenError | None = None) -> None:
        """Show the outcome of checking, deleting and the like."""
        self._note, self._error = note, error
        self._show()

    @property
    def shown(self) -> str:
        """The id of the model shown, or ""."""
        return self._row.id if self._row else ""

    def wishes(self) -> Wishes:
        """Return the choices in the combo boxes."""
        return Wishes(format_named(self._format.currentData()), self._context.currentData())

    def _fill_boxes(self) -> None:
        for value, text in FORMATS:
            self._format.addItem(self.tr(text), value)
        for tokens in CONTEXTS:
            text = self.tr("{} tokens").format(formatting.count(tokens)) if tokens else self.tr("Context: automatic")
            self._context.addItem(text, tokens)
        for box in (self._format, self._context):
            box.setSizeAdjustPolicy(ChoiceBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(LEAST_LETTERS // 2)
        self._format.setAccessibleName(self.tr("Weight format"))
        self._context.setAccessibleName(self.tr("Context"))

    def _lay_out(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(GROUP, GROUP, GROUP, EDGE)
        column.setSpacing(RELATED)
        wishes = self._boxes = QHBoxLayout()
        wishes.setSpacing(RELATED)
        for box in (self._format, self._context):
            wishes.addWidget(box, 1)
        for widget in (self._title, self._facts, self._popular, self._problem, self.access, self.files):
            column.addWidget(widget)
        column.addSpacing(INSIDE)
        column.addWidget(self._verdict)
        column.addWidget(self.outgrown)
        column.addSpacing(INSIDE)
        column.addLayout(wishes)
        column.addSpacing(RELATED)
        column.addWidget(self._body)
        column.addStretch(1)
        self._scroll = QScrollArea(self)
        self._scroll.setWidget(inside)
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self._scroll.setAccessibleName(self.tr("About this model"))
        self._scroll.viewport().installEventFilter(self)
        FocusRing(self._theme, self._scroll)
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
        whole.addWidget(self._guide, 1)
        whole.addWidget(self._scroll, 1)
        whole.addWidget(bar)

    @property
    def parts(self) -> tuple[QWidget, QWidget]:
        """What is told of the model, and the buttons below it."""
        return self._scroll, self._bar

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        narrow = self.width() < self._theme.grown(SIDE_BY_SIDE)
        direction = QBoxLayout.Direction.TopToBottom if narrow else QBoxLayout.Direction.LeftToRight
        self._boxes.setDirection(direction)

    def _connect(self) -> None:
        for id, button in self.buttons.items():
            button.setObjectName(id)
            button.setAutoDefault(False)
            button.clicked.connect(self._on_pressed)
        self.files.picked.connect(self._show)
        self._format.currentIndexChanged.connect(self._on_wish)
        self._context.currentIndexChanged.connect(self._on_wish)
        self.access.token_given.connect(self.token_given)
        self.access.link.connect(self.link)
        self._body.link.connect(self.link)
        self._body.grown.connect(self._measure)
        self._theme.changed.connect(self._on_theme)

    def _show_card(self, text: str) -> None:
        # Reset first: a finished body takes more text as the continuation of the same one.
        self._body.feed("", False)
        self._body.feed(text, True)

    def _show(self) -> None:
        row, details = self._row, self.details
        self._scroll.setVisible(row is not None)
        self._guide.setVisible(row is None)
        self._show_buttons()
        if row is None:
            return
        owner, name = words.owner_and_name(row.id)
        self._title.setText(name if ":" in row.id else row.id)
        self._facts.setText(self._facts_words(row))
        info = details.info if details and details.info else row.info
        from_where = self.tr("From {}").format(owner) if ":" in row.id else ""
        self._popular.setText(words.info_line(info) if info and info.downloads else from_where)
        self._popular.setVisible(bool(self._popular.text()))
        fit = self._fit_of(row)
        self._verdict.show_fit(fit, asking=details is None or details.asking)
        self.outgrown.show_model(row.id, fit, self.wishes().context)
        for box in (self._format, self._context):
            box.setVisible(fit is not None)
        self._show_problem(row)

    def _fit_of(self, row: Row) -> Fit | None:
        if self.details and self.details.choices:
            return self.files.chosen.fit if self.files.chosen else None
        return self.details.fit if self.details and self.details.fit else row.fit

    def _facts_words(self, row: Row) -> str:
        parts = [self.tr(row.known.summary)] if row.known else []
        fit = self._fit_of(row) if self.details else None
        count = fit.parameters if fit else row.known.parameters if row.known else 0
        count = count or (row.info.parameter_count if row.info else 0)
        license = row.known.license if row.known else row.info.license if row.info else ""
        if self.details and self.details.info:
            license = self.details.info.license or license
        chosen = self.files.chosen
        download = chosen.choice.nbytes if chosen else self.details.download_bytes if self.details else 0
        download = download or (row.known.download_bytes if row.known else row.here.total if row.here else 0)
        line = (
            self.tr("{}, {} on this computer, licence {}.")
            if row.is_whole
            else self.tr("{}, {} to download, licence {}.")
        )
        parts.append(line.format(words.parameters(count), words.size(download), license or formatting.unknown()))
        return "\n".join(parts)

    def _problem_of(self, row: Row) -> HeteGenError | None:
        failed = row.transfer.error if row.transfer else None
        unknown = self.details.error if self.details else None
        return self._error or failed or unknown or (self.files.chosen.error if self.files.chosen else None)

    def _show_problem(self, row: Row) -> None:
        error = self._problem_of(row)
        denied = isinstance(error, AccessDenied)
        self._problem.setText(said_error(error) if error else self._note)
        self._problem.setVisible(bool(self._problem.text()))
        # A licence that is still to be accepted is not a failure.
        token = "text" if denied else "danger" if error else "muted"
        self._problem.setStyleSheet(f"color: {getattr(self._theme.colours, token)};")
        self.access.setVisible(denied)
        if denied:
            self.access.show_model(row.id)

    def _show_buttons(self) -> None:
        shown = possible(self._row, can_repair=self._error is not None)
        if self._row and isinstance(self._problem_of(self._row), UnsupportedModel | AccessDenied):
            shown.discard("download")
        main = next((id for id, _ in BUTTONS if id in shown), "")
        pressed = any(holds_focus(self.buttons[id]) for id in self.buttons.keys() - shown)
        for id, button in self.buttons.items():
            button.setVisible(id in shown)
            button.setProperty("primary", id == main and id not in ("pause", "verify"))
            button.style().unpolish(button)
            button.style().polish(button)
        self._bar.setVisible(bool(shown))
        if pressed and main:
            self.buttons[main].setFocus()

    def _measure(self) -> None:
        width = self._scroll.viewport().width() - 2 * GROUP
        if width > 0:
            self._body.setFixedHeight(self._body.measure(width))

    def showEvent(self, event: QShowEvent) -> None:
        # A label that is reparented under an application-wide style sheet loses its font.
        self._on_theme()
        super().showEvent(event)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        # Watch the viewport's width, which, unlike the pane's, also changes with the scroll bar.
        if event.type() == QEvent.Type.Resize:
            self._measure()
        return False

    @Slot()
    def _on_pressed(self) -> None:
        self.pressed.emit(self.sender().objectName())

    @Slot()
    def _on_wish(self) -> None:
        self.wished.emit(self.wishes())

    @Slot()
    def _on_theme(self) -> None:
        self._title.setFont(self._theme.font("heading3"))
        self._popular.setFont(self._theme.font("small"))
        self._popular.setStyleSheet(f"color: {self._theme.colours.muted};")
        self._show()
        self.update()


def possible(row: Row | None, *, can_repair: bool = False) -> set[str]:
    """Return the actions that a model's state allows."""
    if row is None:
        return set()
    phase = row.transfer.phase if row.transfer else None
    if phase in ("queued", "running"):
        return {"pause", "cancel"}
    if phase == "failed":
        return {"retry", "cancel"}
    if row.is_whole:
        # A folder used in place has no commit to compare or repair it with.
        managed = {"verify", "repair"} if row.here and row.here.revision else set()
        return {"use", "folder", "remove"} | (managed if can_repair else managed - {"repair"})
    if row.is_loading:
        return {"resume", "cancel"}
    return {"download"} if row.model else set()
