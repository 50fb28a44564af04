"""A question that is taken back returns to the composer, and waits there for the user, also over a restart."""

from __future__ import annotations

from PySide6.QtCore import QObject, Slot

from app.controllers.attachments import Attachments
from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.views.chat.composer import Composer


class Drafts(QObject):
    """Moves drafts between their conversations and the composer, which belongs to the conversation shown."""

    def __init__(self, chat: ChatModel, composer: Composer, attachments: Attachments) -> None:
        super().__init__()
        self._chat, self._composer, self._attachments = chat, composer, attachments
        self._shown = Conversation()
        """The conversation that the composer's draft belongs to."""
        chat.opened.connect(self._on_opened)

    @Slot(object)
    def on_taken_back(self, question: Turn) -> None:
        """Let the user edit a question, unless something else is being written or it is a version of another one."""
        sole = self._chat.conversation.versions(question.id) == (1, 1) and question.end
        if sole and self._is_free:
            self._chat.take_out(question)
            self._edit(question)

    def keep(self) -> None:
        """Store the draft as it was changed in the composer. An empty one stays as it was."""
        draft = self._shown.draft
        if draft is not None and (text := self._composer.text.strip()):
            draft.content = text
            self._chat.saved.emit(draft)

    @property
    def _is_free(self) -> bool:
        return not self._composer.text.strip() and not self._attachments.pending

    @Slot()
    def _on_opened(self) -> None:
        left, self._shown = self._put_away(), Conversation()
        draft = self._chat.conversation.draft
        if draft is None:
            return
        if left is not None and left.id == draft.id:
            draft.content = left.content  # opened again: the store has not read what was typed
        if self._is_free:
            self._edit(draft)
        else:
            self._chat.put_back(draft)

    def _edit(self, draft: Turn) -> None:
        self._shown = self._chat.conversation
        self._composer.set_text(draft.content)
        self._attachments.attach_again(draft.attached)
        self._composer.take_focus()

    def _put_away(self) -> Turn | None:
        """Take the draft of the conversation that is left from the composer. Files that were added since stay."""
        draft = self._shown.draft
        if draft is not None:
            self.keep()
            self._composer.set_text("")
            if {each.document for each in self._attachments.pending} <= {*draft.attached}:
                self._attachments.clear()
        return draft
