"""The about box and its check for updates, made on request, or at the start if the user has enabled it."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QDialog, QWidget

from app.notices import notices
from app.notices.updates import UpdateAnswer, Updates
from app.settings.theme import Theme


class AboutController(QObject):
    """Opens the about box.

    Signals: `link(address)` to open; `notice(Notice)` on a newer version while the box is closed.
    """

    link = Signal(str)
    notice = Signal(object)

    def __init__(self, theme: Theme, window: QWidget) -> None:
        super().__init__()
        self._theme, self._window = theme, window
        self.updates = Updates()
        self.updates.answered.connect(self._on_answer)
        self._answer: UpdateAnswer | None = None

    @Slot()
    def open(self) -> None:
        """Show the box with the last answer."""
        # Imported late: most starts never open it.
        from app.views.settings.about_dialog import AboutDialog

        about = AboutDialog(self._theme, self._window)
        about.setObjectName("about")
        if self._answer is not None:
            about.show_answer(self._answer)
        about.update_wished.connect(self.updates.check)
        about.link.connect(self.link)
        self.updates.answered.connect(about.show_answer)
        about.open()

    def close(self) -> None:
        """End the thread."""
        self.updates.close()

    @Slot(object)
    def _on_answer(self, answer: UpdateAnswer) -> None:
        self._answer = answer
        if answer.kind == "newer" and self._window.findChild(QDialog, "about") is None:
            self.notice.emit(notices.for_update(answer))
