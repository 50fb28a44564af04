from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import PromptTooLong
from core.events import Message, Truncated
from core.generation.context_window import context_for, fit, room_for_prompt

SYSTEM = Message("system", "s" * 10)


def render(messages: object) -> list[int]:
    """Return one id per character and two per turn; the ids reveal the message they belong to."""
    return [ord(letter) for message in messages for letter in f"<{message.content}>"]  # type: ignore[attr-defined]


def talk(turns: int, length: int = 20) -> list[Message]:
    """Return alternating questions and answers, ending with a question; the n-th consists of n letters."""
    return [Message("user" if n % 2 == 0 else "assistant", chr(ord("a") + n % 26) * length) for n in range(turns)]


def test_what_fits_is_left_alone() -> None:
    messages = [SYSTEM, *talk(5)]
    assert fit(messages, render, 1000) == (render(messages), None)


def test_room_is_kept_for_the_reply() -> None:
    assert room_for_prompt(4096, None) == 4096 - 1024
    assert room_for_prompt(400, None) == 300
    assert room_for_prompt(4096, 10) == 4086
    for tokens in range(1, 9000, 7):
        assert room_for_prompt(context_for(tokens) - 2, None) < tokens <= room_for_prompt(context_for(tokens), None)


def test_the_oldest_turns_go_first_and_the_figures_are_right() -> None:
    messages = [SYSTEM, *talk(21)]
    ids, truncated = fit(messages, render, 400)
    assert truncated is not None
    kept = [SYSTEM, *talk(21)[truncated.dropped_messages :]]
    assert ids == render(kept)
    assert kept[1].role == "user", "what is kept begins with a question"
    assert truncated.dropped_tokens == len(render(messages)) - len(ids)
    assert len(ids) <= room_for_prompt(400, None)


def test_the_prefix_stays_the_same_for_several_turns() -> None:
    """Otherwise the KV cache would be useless once the context is full."""
    starts = []
    for turns in range(15, 61, 2):
        _, truncated = fit([SYSTEM, *talk(turns)], render, 400)
        starts.append(truncated.dropped_messages if truncated else 0)
    changes = sum(one != other for one, other in pairwise(starts))
    assert starts == sorted(starts)
    assert 0 < changes <= len(starts) / 2


def test_system_prompt_and_last_question_are_always_kept() -> None:
    messages = [SYSTEM, *talk(8), Message("user", "q" * 320)]
    assert fit(messages, render, 400) == (
        render([SYSTEM, messages[-1]]),
        Truncated(8, len(render(talk(8)))),
    )


def test_a_question_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="412 of 400 tokens"):
        fit([SYSTEM, Message("user", "q" * 398)], render, 400)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=20), st.integers(256, 700), st.booleans())
def test_any_conversation_is_fitted_or_refused(lengths: list[int], context: int, has_system: bool) -> None:
    turns = [Message("user" if n % 2 == 0 else "assistant", "x" * length) for n, length in enumerate(lengths)]
    if turns[-1].role == "assistant":
        turns.append(Message("user", "?"))
    messages = [SYSTEM, *turns] if has_system else turns
    ids, truncated = fit(messages, render, context)
    dropped = truncated.dropped_messages if truncated else 0
    assert ids == render([*messages[:has_system], *turns[dropped:]])
    assert len(ids) < context
