"""Where a search hit lies within a message, in pixels."""

from __future__ import annotations

from PySide6.QtCore import QPoint
from PySide6.QtGui import QTextCursor
from PySide6.QtWidgets import QPlainTextEdit, QTextEdit, QWidget

from app.text.places import Place, Sought, find_place


def offset_of(sought: Sought, view: QWidget) -> int | None:
    """Return the distance of what is sought from the top of a message's view, None if no text of it has it."""
    best: Place | None = None
    where: QTextEdit | QPlainTextEdit | None = None
    for edit in _edits(view):
        place = find_place(edit.document().toPlainText(), sought)
        if place is not None and (best is None or place.words > best.words):
            best, where = place, edit
    if best is None or where is None:
        return None
    cursor = QTextCursor(where.document())
    cursor.setPosition(best.start)
    return where.viewport().mapTo(view, QPoint(0, where.cursorRect(cursor).top())).y()


def _edits(view: QWidget) -> list[QTextEdit | QPlainTextEdit]:
    """Return the texts of a message from top to bottom."""
    edits: list[QTextEdit | QPlainTextEdit] = [*view.findChildren(QTextEdit), *view.findChildren(QPlainTextEdit)]
    return sorted((edit for edit in edits if edit.isVisibleTo(view)), key=lambda edit: edit.mapTo(view, QPoint()).y())
