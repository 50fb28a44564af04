"""A conversation as a tree of turns: edits and new replies are added beside the old ones; nothing is overwritten.

Plain data without Qt. One path through the tree is shown; `chosen` holds the branch taken at each fork.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import uuid4

from app.conversations.attached import Excerpt, parts_from_table, question
from core.documents.document import Document
from core.events import Message, Role, ToolCall

OPEN_CALLS = ("asking", "running")
"""States of a tool call that waits for the user or runs; others: done, failed, denied, stopped before its result."""
CALLED = "called"
"""The end of a reply that calls tools."""
WAITING = "waiting"
"""The end of a question that waits for the reply in another conversation."""
DRAFT = "draft"
"""The end of a question that was taken back to be edited: see `Conversation.draft`."""

PARTS = "parts"
"""Receipt entry of a question: which passages of long documents went with it."""

COUNTS = "counts"
"""Receipt entry of a question: see `Turn.counts`."""


@dataclass
class Turn:
    """One message.

    `end`: how a reply ended ("" while it runs), or the wait of a question that got no reply; `receipt`: its figures by
    name. A turn with the role `tool` is one call of the reply before it (`call`) with its result, and its `end` is the
    state of that call.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    reasoning_s: float | None = None
    end: str = ""
    receipt: dict[str, object] = field(default_factory=dict)
    left_out: int = 0
    """Number of oldest turns that the engine left out of this reply's prompt."""
    id: str = field(default_factory=lambda: uuid4().hex)
    parent: str | None = None
    attached: tuple[Document, ...] = ()
    """Documents that the model reads before this text."""
    call: ToolCall | None = None

    @property
    def open(self) -> bool:
        """Whether this is a call that waits for the user or for its result."""
        return self.role == "tool" and self.end in OPEN_CALLS

    @property
    def counts(self) -> Mapping[str, int]:
        """The tokens of its documents by digest, of those that the model's tokenizer has counted."""
        counts = self.receipt.get(COUNTS)
        found = counts.items() if isinstance(counts, dict) else ()
        return {digest: tokens for digest, tokens in found if isinstance(tokens, int)}


def call_table(call: ToolCall) -> dict[str, str]:
    """Convert a tool call to JSON."""
    return asdict(call)


def call_from(table: Mapping[str, Any]) -> ToolCall:
    """Inverse of `call_table`. Raises KeyError or TypeError for anything else."""
    return ToolCall(*(str(table[name]) for name in ("id", "name", "arguments")))


class Conversation:
    """The turns of one chat. First turns have the parent None; ids are unique."""

    def __init__(self, id: str | None = None, title: str = "", system: str = "") -> None:
        self.id = id or uuid4().hex
        self.title = title
        self.system = system
        self.preset = ""
        """The conversation's sampling preset; "" = the settings apply."""
        self.draft: Turn | None = None
        """A question that was taken back and is edited in the composer: no turn of the tree."""
        self._turns: dict[str, Turn] = {}
        self._children: dict[str | None, list[str]] = {}
        self._chosen: dict[str | None, str] = {}

    def add(self, turn: Turn) -> Turn:
        """Add a turn under its parent and choose it."""
        if turn.parent is not None and turn.parent not in self._turns:
            raise KeyError(turn.parent)
        self._turns[turn.id] = turn
        self._children.setdefault(turn.parent, []).append(turn.id)
        self._chosen[turn.parent] = turn.id
        return turn

    def take_out(self, id: str) -> None:
        """Make a question without a reply the draft. Another version of it, if there is one, is chosen."""
        self.draft = self._turns.pop(id)
        self.draft.end = DRAFT
        siblings = self._children[self.draft.parent]
        siblings.remove(id)
        if siblings:
            self._chosen[self.draft.parent] = siblings[-1]
        else:
            del self._children[self.draft.parent], self._chosen[self.draft.parent]

    def turn(self, id: str) -> Turn:
        """Return the turn with this id."""
        return self._turns[id]

    def turns(self) -> list[Turn]:
        """List every turn of the tree, parents before children."""
        return list(self._turns.values())

    def path(self) -> list[Turn]:
        """List the turns shown, from first to last."""
        result: list[Turn] = []
        at: str | None = None
        while (following := self._chosen.get(at)) is not None:
            result.append(self._turns[following])
            at = following
        return result

    def versions(self, id: str) -> tuple[int, int]:
        """Return the number of this version, from 1, and the number of versions."""
        siblings = self._children[self._turns[id].parent]
        return siblings.index(id) + 1, len(siblings)

    def has_reply(self, id: str) -> bool:
        """Whether any turn follows this one."""
        return bool(self._children.get(id))

    def switch(self, id: str, step: int) -> str:
        """Choose the version `step` places beside this turn, stopping at the ends; return its id."""
        parent = self._turns[id].parent
        siblings = self._children[parent]
        at = max(0, min(len(siblings) - 1, siblings.index(id) + step))
        self._chosen[parent] = siblings[at]
        return siblings[at]

    def choose(self, id: str) -> None:
        """Let the path run through this turn."""
        at: str | None = id
        while at is not None:
            parent = self._turns[at].parent
            self._chosen[parent] = at
            at = parent

    def chain(self, until: str | None) -> list[Turn]:
        """List the turns from the first to `until`, inclusive."""
        chain: list[Turn] = []
        while until is not None:
            chain.append(self._turns[until])
            until = chain[-1].parent
        return chain[::-1]

    def messages(self, until: str) -> tuple[Message, ...]:
        """Return the model's input: the system prompt and the turns up to `until`, inclusive."""
        found = [Message("system", self.system)] if self.system else []
        for turn in self.chain(until):
            if turn.call is None:
                found.append(self._message(turn))
            else:
                # The calls that follow a reply belong to it.
                reply = next(at for at in range(len(found) - 1, -1, -1) if found[at].role != "tool")
                found[reply] = replace(found[reply], tool_calls=(*found[reply].tool_calls, turn.call))
                found.append(Message("tool", turn.content or "(no result)", tool_call_id=turn.call.id))
        return tuple(found)

    def so_far(self) -> tuple[Message, ...]:
        """Return the turns shown as the model was given them."""
        path = self.path()
        return self.messages(path[-1].id) if path else ()

    def _message(self, turn: Turn) -> Message:
        pictures = tuple(each.picture for each in turn.attached if each.picture)
        return Message(turn.role, self._content(turn), turn.reasoning, pictures=pictures)

    def excerpts(self, id: str) -> list[Excerpt]:
        """Return the passages that were found for a question."""
        parts = self._turns[id].receipt.get(PARTS)
        return parts_from_table(parts, self.documents(id)) if parts else []

    def documents(self, until: str | None) -> dict[str, Document]:
        """Return the documents attached up to a turn, inclusive, by digest."""
        return {document.digest: document for turn in self.chain(until) for document in turn.attached}

    def _content(self, turn: Turn) -> str:
        """Return the text of a turn as the model reads it: documents whole, or their passages."""
        excerpts = self.excerpts(turn.id)
        in_parts = {excerpt.document.digest for excerpt in excerpts}
        whole = [document for document in turn.attached if document.digest not in in_parts]
        return question(turn.content, whole, excerpts)
