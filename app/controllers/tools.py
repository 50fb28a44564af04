"""The page of tool servers. The toolbox carries out its wishes."""

from __future__ import annotations

from PySide6.QtCore import QObject, Slot
from PySide6.QtWidgets import QWidget

from app.settings.theme import Theme
from app.tools.toolbox import Toolbox


class ToolController(QObject):
    """Opens the page and connects it with the toolbox."""

    def __init__(self, theme: Theme, toolbox: Toolbox, window: QWidget) -> None:
        super().__init__()
        self._theme, self._toolbox, self._window = theme, toolbox, window

    @Slot()
    def open(self) -> None:
        """Show the page."""
        # Imported late: most starts never open it.
        from app.views.tools.tools_dialog import ToolsDialog

        box = self._toolbox
        dialog = ToolsDialog(self._theme, box.state, self._window)
        dialog.put_wished.connect(box.put)
        dialog.remove_wished.connect(box.remove)
        dialog.switch_wished.connect(lambda name, on: box.switch(name, on=on))
        dialog.test_wished.connect(box.restart)
        dialog.permit_wished.connect(box.permit)
        box.changed.connect(dialog.show_state)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()
