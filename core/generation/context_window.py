"""Truncates long conversations to the context window; the system prompt and the last question always stay.

The oldest turns are left out first, in steps of a quarter of the context, so that the KV cache's prefix stays the same
for many turns after each step instead of changing at every one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from core.errors import PromptTooLong
from core.events import Message, Truncated
from core.sentence import sentence

# Room for the reply that the prompt may not use: this much of the context, at most RESERVE_TOKENS.
RESERVE_SHARE = 0.25
RESERVE_TOKENS = 1024
# After leaving turns out, this share of the room is in use.
KEPT_SHARE = 0.75

Render = Callable[[Sequence[Message]], list[int]]


def room_for_prompt(context: int, max_new_tokens: int | None) -> int:
    """Tokens that the prompt may have so that a reply of a fair length still fits."""
    reserve = min(int(context * RESERVE_SHARE), RESERVE_TOKENS, max_new_tokens or RESERVE_TOKENS)
    return context - reserve


def context_for(tokens: int) -> int:
    """The least context with so much room for a prompt."""
    return tokens + min(math.ceil(tokens * RESERVE_SHARE / (1 - RESERVE_SHARE)), RESERVE_TOKENS)


def recent(messages: Sequence[Message], count: int) -> list[Message]:
    """The system prompt and the last turns, at most `count` (0 = all), beginning with a question."""
    system, turns = _split(messages)
    if not count:
        return [*system, *turns]
    begins = [place for place in _questions(turns) if place >= len(turns) - count]
    return [*system, *turns[min(begins, default=_last_question(turns)) :]]


def fit(
    messages: Sequence[Message], render: Render, context: int, max_new_tokens: int | None = None
) -> tuple[list[int], Truncated | None]:
    """The prompt's ids, and what had to be left out. Raises PromptTooLong where even the least does not fit.

    Whole exchanges are left out, so that what is kept begins with a question.
    """
    room = room_for_prompt(context, max_new_tokens)
    ids = render(messages)
    if len(ids) <= room:
        return ids, None
    system, turns = _split(messages)
    for start in _starts(turns, render, room):
        kept = render([*system, *turns[start:]])
        if len(kept) <= room:
            return kept, Truncated(start, len(ids) - len(kept))
    last = _last_question(turns)
    least = render([*system, *turns[last:]])
    if len(least) < context:
        return least, Truncated(last, len(ids) - len(least)) if last else None
    raise _too_long(turns, len(least), context)


def _too_long(turns: Sequence[Message], size: int, context: int) -> PromptTooLong:
    if turns[-1].role == "user":
        return PromptTooLong(
            sentence("The message is longer than the context: {} of {} tokens.", f"{size:,}", f"{context:,}"),
            "",
            "Shorten it, or load the model with a longer context.",
        )
    return PromptTooLong(
        sentence("The reply fills the context: {} of {} tokens.", f"{size:,}", f"{context:,}"),
        "",
        "Ask for the rest in a new message, or load the model with a longer context.",
    )


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    system = [message for message in messages if message.role == "system"]
    return system, [message for message in messages if message.role != "system"]


def _questions(turns: Sequence[Message]) -> list[int]:
    """Where exchanges begin: a question, or the first of several in a row."""
    return [i for i, turn in enumerate(turns) if turn.role == "user" and (i == 0 or turns[i - 1].role != "user")]


def _last_question(turns: Sequence[Message]) -> int:
    return max((place for place, turn in enumerate(turns) if turn.role == "user"), default=0)


def _starts(turns: Sequence[Message], render: Render, room: int) -> Iterator[int]:
    """Candidates for the first turn to keep, each a question, the preferred one first.

    The history is played through exchange by exchange with the same rule, so that the choice stays the same as it
    grows.
    """
    begins = _questions(turns)
    kept: list[int] = []  # the lengths of the exchanges that are kept
    first = 0
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], len(turns)], strict=True)):
        lengths = [_length(turn, render) for turn in turns[begin:end]]
        asked = sum(length for length, turn in zip(lengths, turns[begin:end], strict=True) if turn.role == "user")
        if sum(kept) + asked > room:
            while kept and sum(kept) + asked > room * KEPT_SHARE:
                del kept[0]
            first = number - len(kept)
        kept.append(sum(lengths))
    yield from begins[first:]


def _length(turn: Message, render: Render) -> int:
    """About how much of the prompt a turn takes: every template takes a question alone."""
    return len(render([Message("user", turn.content)])) if turn.content.strip() else 0
