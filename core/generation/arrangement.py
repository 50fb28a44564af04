"""The arrangements of a conversation that chat templates accept: unchanged, or joined for strictly alternating turns.

`chat_template` finds the accepted one by trying.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from core.events import Message

BETWEEN = "\n\n"


def arrangements(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the conversation in every arrangement worth trying, least changed first. All end with the last message."""
    systems = [message for message in messages if message.role == "system"]
    turns = [turn for turn in messages if turn.role != "system" and (turn is messages[-1] or not is_blank(turn))]
    seen: list[list[Message]] = []
    for from_question, apart, separate in product((False, True), (True, False), (True, False)):
        shown = _from_first_question(turns) if from_question else turns
        arranged = shown if separate else joined(shown)
        arranged = _with_system(systems, arranged, apart=apart)
        if arranged not in seen:
            seen.append(arranged)
            yield arranged


def is_plain(message: Message) -> bool:
    """Return whether a user or assistant turn has only text, reasoning and pictures."""
    plain = Message(message.role, message.content, message.reasoning, pictures=message.pictures)
    return message == plain and message.role in ("user", "assistant")


def is_blank(message: Message) -> bool:
    """Return whether a turn has neither text nor pictures, such as a reply that was stopped before its answer."""
    return is_plain(message) and not message.content.strip() and not message.pictures


def joined(turns: Sequence[Message]) -> list[Message]:
    """Join consecutive turns of the same role."""
    result: list[Message] = []
    for turn in turns:
        if result and is_plain(turn) and is_plain(result[-1]) and result[-1].role == turn.role:
            both = (result[-1].content.rstrip(), turn.content)
            shown = (*result[-1].pictures, *turn.pictures)
            result[-1] = replace(turn, content=BETWEEN.join(text for text in both if text), pictures=shown)
        else:
            result.append(turn)
    return result


def _from_first_question(turns: Sequence[Message]) -> list[Message]:
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), 0)
    return list(turns[first:])


def _with_system(systems: Sequence[Message], turns: Sequence[Message], *, apart: bool) -> list[Message]:
    text = BETWEEN.join(system.content for system in systems if system.content.strip())
    if not text:
        return list(turns)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if apart or first is None:
        return [Message("system", text), *turns]
    question = replace(turns[first], content=f"{text}{BETWEEN}{turns[first].content}")
    return [*turns[:first], question, *turns[first + 1 :]]
