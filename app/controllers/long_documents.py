"""Documents that are too long for the context: choosing passages for each question, and offering a larger context."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from PySide6.QtCore import QObject, Slot

from app.conversations.attached import parts_to_table, tokens_about
from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Turn
from app.engine.app_state import State
from app.engine.task_thread import TaskThread, Tell
from app.monitor.observer import emptied
from app.notices.notices import LargerContext
from core.documents.document import Document
from core.documents.passages import PassageIndex, Span
from core.events import LoadOptions, Stop
from core.planning.planner import place

PARTS_TOKENS = 3000
"""Most tokens of passages per question. More would take too long to read on a slow processor."""
PARTS_SHARE = 4
"""Passages take at most 1/N of the context, which leaves room for those of the next questions."""
REMEMBERED = 2
"""Passages given with the last N questions are not selected again."""
STEP = 1024
"""A larger context is a multiple of this many tokens."""


class LongDocuments(QObject):
    """Keeps an index of each long document of the open conversation, built in a worker thread."""

    def __init__(self, chat: ChatModel, state: Callable[[], State]) -> None:
        super().__init__()
        self._chat, self._state = chat, state
        self._indexes: dict[str, PassageIndex] = {}
        self._making: dict[int, str] = {}
        self._maker = TaskThread("passages")
        self._maker.done.connect(self._on_made)
        chat.opened.connect(self._on_opened)

    def prepare(self, documents: Iterable[Document]) -> None:
        """Build the missing indexes."""
        for document in documents:
            if document.digest not in {*self._indexes, *self._making.values()}:
                self._making[self._maker.run(partial(_index, document))] = document.digest

    def is_ready(self, document: Document) -> bool:
        """Whether the document's index is built."""
        return document.digest in self._indexes

    def parts(self, question: Turn, new: Collection[str]) -> Mapping[str, object] | None:
        """Select the passages that go with a question, in the form of `parts_to_table`.

        Covers the documents with the digests `new` and those that were read in parts before. None while an index is
        being built.
        """
        chat = self._chat.conversation
        before = chat.chain(question.parent)
        documents = chat.documents(question.parent) | {each.digest: each for each in question.attached}
        told = [each for turn in before for each in chat.excerpts(turn.id)]
        wanted = dict.fromkeys([*(each.document.digest for each in told), *new])
        self.prepare(documents[digest] for digest in wanted)
        if not wanted.keys() <= self._indexes.keys():
            return None
        recent = [each for turn in before[-2 * REMEMBERED :] for each in chat.excerpts(turn.id)]
        budget = self._budget() // max(1, len(wanted))
        return parts_to_table({
            digest: self._find(digest, question.content, budget, {span for each in recent
                               if each.document.digest == digest for span in each.spans})
            for digest in wanted
        })  # fmt: skip

    def close(self) -> None:
        """End the thread and close the indexes."""
        self._maker.close()
        for index in self._indexes.values():
            index.close()

    def _find(self, digest: str, text: str, budget: int, seen: Collection[Span]) -> tuple[Span, ...]:
        return self._indexes[digest].find(text, budget, tokens_about, seen)

    def _budget(self) -> int:
        model = self._state().model
        return min(PARTS_TOKENS, model.context // PARTS_SHARE) if model and model.context else PARTS_TOKENS

    @Slot()
    def _on_opened(self) -> None:
        chat = self._chat.conversation
        path = chat.path()
        known = {each.document.digest: each.document for turn in path for each in chat.excerpts(turn.id)}
        for digest in self._indexes.keys() - known.keys():
            self._indexes.pop(digest).close()
        self.prepare(known.values())

    @Slot(int, object)
    def _on_made(self, ticket: int, index: PassageIndex | None) -> None:
        digest = self._making.pop(ticket)
        if index is not None:
            self._indexes[digest] = index


def _index(document: Document, stop: Stop, tell: Tell) -> PassageIndex:
    return PassageIndex(document)


@dataclass(frozen=True)
class Larger:
    """A larger context that fits in this computer's memory: the options to load with, and the cost."""

    options: LoadOptions
    cost: LargerContext


def larger_context(state: State, tokens: int) -> Larger | None:
    """Plan a context of at least `tokens` tokens; None if the model or the memory does not allow it."""
    model = state.model
    if model is None or model.plan is None or model.spec is None or model.hardware is None:
        return None
    context = -(-tokens // STEP) * STEP
    if context > model.spec.context_limit:
        return None
    options = replace(state.options, context=context, format=model.plan.format, kv=model.plan.kv)
    plan = place(model.spec, emptied(model.hardware, model.plan), options, profile=model.plan.profile)
    if plan.fits == "no" or plan.context < context:
        return None
    held = model.spec.with_kv(plan.kv)
    more = held.kv_bytes(context) - held.kv_bytes(model.context)
    return Larger(options, LargerContext(context, more, plan.decode.likely, model.plan.decode.likely))
