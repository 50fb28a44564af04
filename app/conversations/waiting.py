"""Questions that wait for the reply in another conversation: in order, at most one per conversation. Asks none."""

from __future__ import annotations

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import WAITING, Conversation, Turn
from app.conversations.model_session import ModelSession


class Waiting:
    """Queue of questions, which the chat model and the `State` are told of."""

    def __init__(self, chat: ChatModel, model: ModelSession) -> None:
        self._chat, self._model = chat, model
        self._questions: dict[str, tuple[Conversation, Turn]] = {}

    def conversation(self, id: str) -> Conversation | None:
        """Return the conversation with this id if a question waits in it."""
        return self._questions[id][0] if id in self._questions else None

    def put(self, conversation: Conversation, question: Turn) -> None:
        """Add a question at the end of the queue."""
        self._questions[conversation.id] = conversation, question
        self._mark(question, WAITING)

    def next(self) -> tuple[Conversation, Turn] | None:
        """Remove and return the first question with its conversation, None if none waits."""
        first = next(iter(self._questions.values()), None)
        if first is not None:
            self._remove(*first, end="")
        return first

    def take_back(self, id: str) -> Turn | None:
        """Remove and return a conversation's question, if one waits in it: it stays there, to be asked again."""
        if id not in self._questions:
            return None
        conversation, question = self._questions[id]
        self._remove(conversation, question, end="stopped")
        return question

    def take_all_back(self) -> None:
        """Remove all questions."""
        for id in list(self._questions):
            self.take_back(id)

    def _remove(self, conversation: Conversation, question: Turn, end: str) -> None:
        del self._questions[conversation.id]
        self._mark(question, "" if conversation.has_reply(question.id) else end)

    def _mark(self, question: Turn, end: str) -> None:
        question.end = end
        self._chat.changed(question)
        self._model.change(waiting=tuple(self._questions))
