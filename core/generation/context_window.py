"""What of a long conversation goes into the prompt: the system prompt and the last question always do.

The oldest turns are left out first, in steps of a quarter of the context, so that the KV cache's prefix stays the same
for many turns after each step instead of changing at every one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.errors import PromptTooLong
from core.events import Message, Truncated

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


def recent(messages: Sequence[Message], count: int) -> list[Message]:
    """The system prompt and the last turns, at most `count` (0 = all), beginning with a question."""
    system, turns = _split(messages)
    last = turns[-count:]
    while len(last) > 1 and last[0].role != "user":
        del last[0]
    return [*system, *last]


def fit(
    messages: Sequence[Message], render: Render, context: int, max_new_tokens: int | None = None
) -> tuple[list[int], Truncated | None]:
    """The prompt's ids, and what had to be left out. Raises PromptTooLong where even the least does not fit."""
    room = room_for_prompt(context, max_new_tokens)
    ids = render(messages)
    if len(ids) <= room:
        return ids, None
    system, turns = _split(messages)
    for start in _starts(turns, [len(render([turn])) for turn in turns if turn.role != "system"], room):
        kept = render([*system, *turns[start:]])
        if len(kept) <= room:
            return kept, Truncated(start, len(ids) - len(kept))
    least = render([*system, turns[-1]])
    if len(least) < context:
        return least, Truncated(len(turns) - 1, len(ids) - len(least))
    raise PromptTooLong(
        f"The message is longer than the context: {len(least):,} of {context:,} tokens.",
        "",
        "Shorten it, or load the model with a longer context.",
    )


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    system = [message for message in messages if message.role == "system"]
    return system, [message for message in messages if message.role != "system"]


def _starts(turns: Sequence[Message], lengths: Sequence[int], room: int) -> list[int]:
    """Candidates for the first turn to keep, each a question, the preferred one first.

    The history is played through turn by turn with the same rule, so that the choice stays the same as it grows.
    """
    start, used = 0, 0
    for index, length in enumerate(lengths):
        used += length
        if used > room:
            while start < index and used > room * KEPT_SHARE:
                used -= lengths[start]
                start += 1
    return [i for i in range(start, len(turns)) if turns[i].role == "user"]
