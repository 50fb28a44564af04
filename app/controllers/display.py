"""Shows in every part of the window what goes on: the session, the machine, the conversation in use."""

from __future__ import annotations

from PySide6.QtCore import QObject, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import CALLED, Conversation, Turn
from app.conversations.library import Library
from app.conversations.session import Session
from app.engine.app_state import State
from app.monitor.telemetry import Sample
from app.views.conversations.sidebar import Sidebar
from app.views.frame.window import MainWindow
from app.views.monitor.live_view import LiveView


class Display(QObject):
    """Follows the session, the telemetry and the library."""

    def __init__(
        self,
        window: MainWindow,
        sidebar: Sidebar,
        live: LiveView,
        chat: ChatModel,
        session: Session,
        library: Library,
    ) -> None:
        super().__init__()
        self._window, self._sidebar, self._live = window, sidebar, live
        self._chat, self._session, self._library = chat, session, library

    def show_state(self, state: State) -> None:
        """Show the model, the phase and the figures."""
        window = self._window
        window.top.show_state(state)
        window.status.show_state(state)
        window.notices.show_state(state)
        window.composer.show_state(state)
        self._live.show_phase(state.phase)
        self._sidebar.set_progress(state.answered if state.busy else "", state.waiting)

    @Slot(object)
    def on_sample(self, sample: Sample) -> None:
        """Show how busy this computer is."""
        self._window.status.show_machine(sample.cpu_percent, sample.ram_used, sample.ram_total)

    @Slot(object, str)
    def on_opening(self, conversation: Conversation, turn: str) -> None:
        """Show a conversation, at a turn if the user came from the search."""
        self._chat.show(conversation)
        if turn:
            self._window.transcript.show_place(turn, self._sidebar.sought(turn))
            self._window.composer.take_focus()

    @Slot()
    def mark_open(self) -> None:
        """Mark the open conversation in the list."""
        self._sidebar.set_current(self._chat.conversation.id)

    @Slot(object)
    def on_finished(self, turn: Turn) -> None:
        """Announce a reply; one that is not shown is marked as unread once it calls no more tools."""
        if self._session.answered is self._chat.conversation:
            self._window.announce(turn.content)
        elif turn.end != CALLED:
            self._window.announce("")
            self._library.set_unread(self._session.answered.id, unread=True)
