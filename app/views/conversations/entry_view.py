"""The conversation list as a widget, with its keys and clicks."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPoint, Qt, Signal, Slot
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QAbstractItemView, QListView, QWidget

from app.settings.theme import ICON, INSIDE, RELATED, Theme
from app.views.conversations.entry_list import EntryDelegate, EntryModel


class EntryView(QListView):
    """List view: Enter opens, F2 renames, Delete deletes; the menu key and a right click open the menu."""

    activated_at = Signal(QModelIndex)
    delete_pressed = Signal(QModelIndex)
    menu_wished = Signal(QModelIndex, QPoint)

    def __init__(self, theme: Theme, model: EntryModel, parent: QWidget) -> None:
        super().__init__(parent)
        self._pressed = QPoint()
        self.setModel(model)
        self.setItemDelegate(EntryDelegate(theme, self))
        self.setFrameShape(QListView.Shape.NoFrame)
        self.setStyleSheet("QListView { background: transparent; outline: none; }")
        self.setEditTriggers(QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setMouseTracking(True)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.customContextMenuRequested.connect(self._on_menu)
        self.clicked.connect(self._on_click)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        index = self.currentIndex()
        if self.state() == QAbstractItemView.State.EditingState or not index.isValid():
            super().keyPressEvent(event)
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.activated_at.emit(index)
        elif event.key() == Qt.Key.Key_Delete:
            self.delete_pressed.emit(index)
        else:
            super().keyPressEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self._pressed = event.position().toPoint()
        super().mousePressEvent(event)

    @Slot(QModelIndex)
    def _on_click(self, index: QModelIndex) -> None:
        if self._pressed.x() > self.viewport().width() - ICON - RELATED - INSIDE:
            self.menu_wished.emit(index, self.viewport().mapToGlobal(self._pressed))
        else:
            self.activated_at.emit(index)

    @Slot(QPoint)
    def _on_menu(self, place: QPoint) -> None:
        index = self.indexAt(place)
        if index.isValid():
            self.menu_wished.emit(index, self.viewport().mapToGlobal(place))
