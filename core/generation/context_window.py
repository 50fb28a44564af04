"""Truncates long conversations to the context window; the system prompt and the last question always stay.

Drops the oldest turns first, in steps of a quarter of the available tokens. Between two steps the prompt's prefix stays
the same, so that the KV cache can reuse it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from core.errors import PromptTooLong
from core.events import Message, Truncated
from core.sentence import sentence

# Tokens reserved for the reply: this share of the context, at most RESERVE_TOKENS.
RESERVE_SHARE = 0.25
RESERVE_TOKENS = 1024
# The share of the room that remains in use after turns were dropped.
KEPT_SHARE = 0.75

Render = Callable[[Sequence[Message]], list[int]]


def room_for_prompt(context: int, max_new_tokens: int | None) -> int:
    """Return the largest prompt length that leaves room for a reply of reasonable length."""
    reserve = min(int(context * RESERVE_SHARE), RESERVE_TOKENS, max_new_tokens or RESERVE_TOKENS)
    return context - reserve


def context_for(tokens: int) -> int:
    """Return the smallest context with room for a prompt of so many tokens."""
    return tokens + min(math.ceil(tokens * RESERVE_SHARE / (1 - RESERVE_SHARE)), RESERVE_TOKENS)


def recent(messages: Sequence[Message], count: int) -> list[Message]:
    """Return the system prompt and the last turns, at most `count` (0 = all), beginning with a question."""
    system, turns = _split(messages)
    if not count:
        return [*system, *turns]
    begins = [place for place in _questions(turns) if place >= len(turns) - count]
    return [*system, *turns[min(begins, default=_last_question(turns)) :]]


def fit(
    messages: Sequence[Message], render: Render, context: int, max_new_tokens: int | None = None
) -> tuple[list[int], Truncated | None]:
    """Return the prompt's ids, and what was dropped. Raises PromptTooLong if even the minimum does not fit.

    Drops whole exchanges, so that the rest begins with a question.
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
    """Return the indices where exchanges begin: at a question, or at the first of several in a row."""
    return [i for i, turn in enumerate(turns) if turn.role == "user" and (i == 0 or turns[i - 1].role != "user")]


def _last_question(turns: Sequence[Message]) -> int:
    return max((place for place, turn in enumerate(turns) if turn.role == "user"), default=0)


def _starts(turns: Sequence[Message], render: Render, room: int) -> Iterator[int]:
    """Yield candidates for the first turn to keep, each a question, the preferred one first.

    Replays the history exchange by exchange with the same rule, so that the choice is stable while it grows.
    """
    begins = _questions(turns)
    kept: list[int] = []  # lengths of the kept exchanges
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
    """Return a turn's approximate number of tokens, rendered as a lone question, which every template accepts."""
    return len(render([Message("user", turn.content)])) if turn.content.strip() else 0
