"""Notices about a reply in a conversation that is not shown: they go when it has ended, or is shown."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal, Slot

from app.engine.app_state import State
from app.notices import notices


class Elsewhere(QObject):
    """Follows the session's state.

    Signals: `notice(Notice)`; `withdrawn(Notice)` for every notice that no longer applies.
    """

    notice = Signal(object)
    withdrawn = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._elsewhere = False

    @Slot(object)
    def on_state(self, state: State) -> None:
        """Withdraw the notices once no other conversation is being answered."""
        before, self._elsewhere = self._elsewhere, state.elsewhere
        if before and not state.elsewhere:
            for notice in (notices.answers_elsewhere(), notices.tool_asks_elsewhere()):
                self.withdrawn.emit(notice)

    @Slot()
    def on_tool_asks(self) -> None:
        """Tell that a tool call waits for the user, unless it can be seen."""
        if self._elsewhere:
            self.notice.emit(notices.tool_asks_elsewhere())
