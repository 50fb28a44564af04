"""The widgets of the model dialog and their layout. Behaviour is in `model_dialog` and `search`."""

from __future__ import annotations

from PySide6.QtCore import Qt, Slot
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QListView,
    QPushButton,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from app.settings.theme import GROUP, RELATED, Theme
from app.views.controls.controls import Pane
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import ChoiceBox, SearchBox
from app.views.controls.tab_stops import order_as_read
from app.views.models.access import TokenButton
from app.views.models.details import DetailsPane
from app.views.models.rows import ModelList, RowsDelegate, RowsModel
from core.hub.listing import Sort

SIZE, LIST_WIDTH = (960, 660), 430
SORTS: tuple[tuple[Sort, str], ...] = (
    ("trendingScore", "Trending"),
    ("downloads", "Most downloaded"),
    ("likes", "Most liked"),
    ("lastModified", "Recently updated"),
)


class ModelDialogFrame(Dialog):
    """Search on top, list on the left, details on the right, models folder at the bottom."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(self.tr("Models"))
        self.resize(*SIZE)
        self.search, self.sort = SearchBox(theme, self), ChoiceBox(theme, self)
        self.rows = RowsModel(self)
        self.list = ModelList(self)
        self.delegate = RowsDelegate(theme, self.list)
        self.details = DetailsPane(theme, self)
        self.note, self.place = QLabel(self), QLabel(self)
        self.again = QPushButton(self.tr("Try again"), self)
        self.more = QPushButton(self.tr("Show more"), self)
        self.add = QPushButton(self.tr("Add a model folder…"), self)
        self.token = TokenButton(self)
        self._set_up()
        self._lay_out()
        theme.changed.connect(self._on_theme)
        self._on_theme()

    def _set_up(self) -> None:
        self.search.setPlaceholderText(self.tr("Search the Hub, or paste a model's name or address"))
        self.search.setAccessibleName(self.tr("Search models"))
        for value, text in SORTS:
            self.sort.addItem(self.tr(text), value)
        self.sort.setAccessibleName(self.tr("Order"))
        self.list.setModel(self.rows)
        self.list.setItemDelegate(self.delegate)
        self.list.setFrameShape(QListView.Shape.NoFrame)
        self.list.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setMouseTracking(True)
        self.list.setAccessibleName(self.tr("Models"))
        self.note.setWordWrap(True)
        self.note.setTextFormat(Qt.TextFormat.PlainText)
        self.note.hide()
        self.again.hide()
        self.more.hide()
        for button in (self.again, self.more, self.add):
            button.setAutoDefault(False)

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        top.setContentsMargins(GROUP, GROUP, GROUP, RELATED)
        top.setSpacing(RELATED)
        top.addWidget(self.search, 1)
        top.addWidget(self.sort)
        self._left = left = Pane(self._theme, "window", (), self)
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.list, 1)
        under = QHBoxLayout()
        under.setContentsMargins(GROUP, 0, GROUP, 0)
        under.addWidget(self.note, 1)
        under.addWidget(self.again)
        under.addWidget(self.more)
        column.addLayout(under)
        halves = QSplitter(Qt.Orientation.Horizontal, self)
        halves.setHandleWidth(1)
        halves.setChildrenCollapsible(False)
        halves.addWidget(left)
        halves.addWidget(self.details)
        halves.setSizes([LIST_WIDTH, SIZE[0] - LIST_WIDTH])
        self._bar = bar = Pane(self._theme, "side", ("top",), self)
        foot = QHBoxLayout(bar)
        foot.setContentsMargins(GROUP, RELATED, GROUP, RELATED)
        foot.setSpacing(RELATED)
        foot.addWidget(self.place, 1)
        foot.addWidget(self.token)
        foot.addWidget(self.add)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addLayout(top)
        whole.addWidget(halves, 1)
        whole.addWidget(bar)

    def focusNextPrevChild(self, next: bool) -> bool:
        order_as_read(self.sort, [self._left, *self.details.parts, self._bar])
        return super().focusNextPrevChild(next)

    def say(self, words: str, *, can_retry: bool = False) -> None:
        """Show a line under the list, with a button to retry if that may help; "" hides it."""
        self.note.setText(words)
        self.note.setVisible(bool(words))
        self.again.setVisible(can_retry)

    @Slot()
    def _on_theme(self) -> None:
        colours = self._theme.colours
        self.note.setStyleSheet(f"color: {colours.muted};")
        self.place.setStyleSheet(f"color: {colours.muted};")
        self.place.setFont(self._theme.font("small"))
        self.list.setStyleSheet(f"background: {colours.window};")
        self.list.viewport().update()
