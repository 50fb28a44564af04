"""How much of a conversation is passed to a model that follows only a few turns."""

from __future__ import annotations

import pytest

from core.events import Message
from core.generation.context_window import recent

TALK = [Message("user", "1"), Message("assistant", "2"), Message("user", "3"), Message("assistant", "4")]
QUESTION = Message("user", "5")


@pytest.mark.parametrize(
    ("count", "kept"), [(0, "12345"), (9, "12345"), (5, "12345"), (4, "345"), (3, "345"), (2, "5"), (1, "5")]
)
def test_last_turns_beginning_with_a_question(count: int, kept: str) -> None:
    messages = [Message("system", "s"), *TALK, QUESTION]
    assert "".join(message.content for message in recent(messages, count)) == "s" + kept
