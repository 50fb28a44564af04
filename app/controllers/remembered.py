"""What the next start begins with: the window's place, its folded panes, and the last model that could be loaded."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Slot

from app.conversations.session import Session
from app.system import window_state
from app.system.window_state import WindowState
from app.views.frame.window import MainWindow


class Remembered(QObject):
    """Reads the window's file once, and writes it after each load and at the end."""

    def __init__(self, file: Path, window: MainWindow, session: Session) -> None:
        super().__init__()
        self._file, self._window, self._session = file, window, session
        self._read = window_state.read(file)
        self.source = self._read.source
        """The last model that could be loaded, "" = none yet."""

    def restore(self) -> None:
        """Put the window and its panes where they were."""
        self._window.restore(self._read.geometry)
        self._window.panes.prefer_folded("sidebar", not self._read.sidebar)
        self._window.panes.prefer_folded("live", not self._read.live)

    @Slot()
    def on_loaded(self) -> None:
        """Remember the model. Written now, not at the end: after a crash, too, the next start loads this model."""
        self.source = self._session.state.source
        self.write()

    def write(self) -> None:
        """Write the file."""
        panes = self._window.panes
        kept = WindowState(self._window.state(), panes.unfolded("sidebar"), panes.unfolded("live"), self.source)
        window_state.write(self._file, kept)
