"""Conversations as files: Markdown for people, JSON for keeping and for other programs.

JSON holds the whole tree with every version, and `imports` reads it back; Markdown holds only the branch shown, in
the window's language. This module knows no database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from app.conversations.attached import to_table
from app.conversations.conversation import CALLED, Turn, call_table
from app.conversations.imports.reader import FORMAT, VERSION
from app.conversations.saved_conversation import SavedConversation
from app.i18n.formatting import receipt
from app.i18n.translator import tr
from core.events import ToolCall

OUTCOMES = {"done": "Done", "failed": "Failed", "denied": "Not allowed"}
"""How a tool call ended, in words."""


def to_markdown(saved: SavedConversation) -> str:
    """Format the branch shown: a heading per turn, reasoning folded, and the figures of each reply."""
    conversation = saved.conversation
    parts = [f"# {_one_line(conversation.title) or tr('Conversation')}"]
    if conversation.system:
        parts.append(_quote(tr("System prompt: {}").format(conversation.system)))
    for turn in conversation.path():
        parts += _markdown_of(turn, saved.created.get(turn.id))
    return "\n\n".join(parts) + "\n"


def _markdown_of(turn: Turn, created: float | None) -> Iterator[str]:
    if turn.call is not None:
        yield _call(turn, turn.call)
        return
    speaker = {"user": tr("You"), "assistant": str(turn.receipt.get("model") or tr("Model"))}.get(
        turn.role, tr("System")
    )
    when = f" · {datetime.fromtimestamp(created):%Y-%m-%d %H:%M}" if created else ""
    yield f"## {_one_line(speaker)}{when}"
    if turn.reasoning:
        yield f"<details><summary>{tr('Reasoning')}</summary>\n\n{turn.reasoning.strip()}\n\n</details>"
    for document in turn.attached:
        yield _quote(tr("Attached: {}").format(_one_line(document.name)))
    if turn.content.strip() or not (turn.attached or turn.end == CALLED):
        yield turn.content.strip() or f"*{tr('(empty)')}*"
    if figures := receipt(turn.receipt):
        yield f"*{figures}*"


def _call(turn: Turn, call: ToolCall) -> str:
    """Format a tool call, folded: its arguments and its result."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", turn.content)), default=0))
    result = f"{fence}\n{turn.content.strip()}\n{fence}"
    summary = tr("Tool: {} ({})").format(_one_line(call.name), tr(OUTCOMES.get(turn.end, "Stopped")))
    return (
        f"<details><summary>{summary}</summary>\n\n```json\n{_one_line(call.arguments)}\n```\n\n{result}\n\n</details>"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def to_json(conversations: Iterable[SavedConversation]) -> str:
    """Serialise conversations with all versions; `from_json` restores them."""
    table = {"format": FORMAT, "version": VERSION, "conversations": [_table_of(saved) for saved in conversations]}
    return json.dumps(table, indent=1, ensure_ascii=False)


def _table_of(saved: SavedConversation) -> dict[str, object]:
    conversation = saved.conversation
    shown = {turn.id for turn in conversation.path()}
    return {
        "title": conversation.title,
        "system": conversation.system,
        "pinned": saved.pinned,
        "options": dict(saved.options),
        "turns": [
            {
                **vars(turn),
                "call": call_table(turn.call) if turn.call is not None else None,
                "attached": [to_table(each) for each in turn.attached],
                "created": saved.created.get(turn.id),
                "shown": turn.id in shown,
            }
            for turn in conversation.turns()
        ],
    }
