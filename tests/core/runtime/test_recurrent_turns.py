"""Recurrent models: a regenerated, edited or stopped reply reads at most the last turn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Event, Finished, LoadOptions, Message, Piece, Prefill, Request, Sampling
from tests.core.tiny_tokenizer import chat_model

FAMILIES = ("qwen3_5_text", "falcon_h1", "lfm2")
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
LONG = "the quick brown fox jumps over the lazy dog and asks for the answer. "


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return chat_model(tmp_path, request.param)


def loaded(folder: Path, context: int = 1000) -> Engine:
    engine = Engine()
    *_, _loaded = engine.load(folder, LoadOptions(threads=1, context=context))
    return engine


def reply(engine: Engine, messages: Sequence[Message], stop_after: int | None = None) -> tuple[str, int, int]:
    """Return the text, the number of prompt tokens in the cache, and the number of tokens that were read."""
    events: list[Event] = []

    def stop() -> bool:
        return stop_after is not None and sum(isinstance(event, Piece) for event in events) > stop_after

    for event in engine.chat(Request(tuple(messages), GREEDY), stop):
        events.append(event)  # noqa: PERF402  `stop` looks at those that came
    first = next(event for event in events if isinstance(event, Prefill))
    assert isinstance(events[-1], Finished)
    text = "".join(event.text for event in events if isinstance(event, Piece))
    return text, first.reused, first.total - first.reused


def test_a_reply_after_a_long_conversation_is_made_anew_from_the_last_turn(folder: Path) -> None:
    engine = loaded(folder)
    said, read = [Message("user", LONG * 6)], 0
    for turn in range(3):
        answer, _, read = reply(engine, said)
        said += [Message("assistant", answer), Message("user", f"and {turn}? " + LONG)]
    last, reused, read = reply(engine, said)
    assert reused > 300, "what came before is long"
    again, _, read_again = reply(engine, said)
    assert again == last
    assert 0 < read_again <= read
    assert read_again <= 8, "and of the turn its last tokens alone"
    edited = [*said[:-1], Message("user", "the other dog? " + LONG)]
    fresh, _, read_edited = reply(engine, edited)
    assert read_edited <= read + len("the other dog? ")
    assert fresh == reply(loaded(folder), edited)[0], "nothing of the other question is left"


def test_after_four_thousand_tokens_no_more_than_the_last_turn_is_read(tmp_path: Path) -> None:
    engine = loaded(chat_model(tmp_path, "qwen3_5_text", max_position_embeddings=8192), context=8000)
    said = [Message("user", LONG * 160)]
    answer, *_ = reply(engine, said)
    said += [Message("assistant", answer), Message("user", LONG)]
    last, reused, read = reply(engine, said)
    assert reused > 4000
    again, reused_again, read_again = reply(engine, said)
    assert again == last
    assert read_again <= min(read, 8)
    assert reused_again > 4000
    edited, _, read_edited = reply(engine, [*said[:-1], Message("user", "and " + LONG)])
    assert edited
    assert read_edited <= read + len("and ")


def test_a_stopped_reply_is_asked_for_again(folder: Path) -> None:
    engine = loaded(folder)
    said = [Message("user", LONG * 3)]
    answer, *_ = reply(engine, said)
    said += [Message("assistant", answer), Message("user", LONG)]
    whole, *_, read = reply(engine, said)
    reply(engine, said, stop_after=2)
    again, _, read_again = reply(engine, said)
    assert again == whole
    assert read_again <= read
