"""A reply of known words: models whose weights make them say a script, through the engine's front door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Event, Finished, LoadOptions, Message, Piece, Prefill, Request, Sampling, Stats, Truncated
from core.generation.tokenizer import Tokenizer
from tests.core.tiny_tokenizer import scripted_model

ASK = (Message("user", "hi"),)
GREEDY = Sampling(temperature=0.0)
OPTIONS = LoadOptions(threads=1)


def loaded(folder: Path, script: Sequence[int | str], asked: Sequence[Message] = ASK) -> Engine:
    engine = Engine()
    *_, _loaded = engine.load(scripted_model(folder, asked, script), OPTIONS)
    return engine


def say(engine: Engine, **request: object) -> list[Event]:
    return list(engine.chat(replace(Request(ASK, GREEDY), **request)))  # type: ignore[arg-type]


def text(events: Sequence[Event], kind: str = "answer") -> str:
    return "".join(event.text for event in events if isinstance(event, Piece) and event.kind == kind)


def finish(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_events_come_in_their_order(tmp_path: Path) -> None:
    events = say(loaded(tmp_path, ["Hello."]))
    kinds = [type(event) for event in events]
    assert kinds[0] is Prefill
    assert kinds[-1] is Finished
    assert kinds.index(Piece) > max(at for at, kind in enumerate(kinds) if kind is Prefill)
    assert set(kinds) == {Prefill, Piece, Stats, Finished}
    assert text(events) == "Hello."
    assert finish(events).reason == "stop"


def test_figures_of_a_reply_are_right(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["Hello."])
    stats = finish(say(engine)).stats
    prompt = len(Tokenizer.load(tmp_path).render(ASK))
    assert (stats.prompt_tokens, stats.reused_tokens, stats.new_tokens) == (prompt, 0, 6)
    assert (stats.context_used, stats.context_limit) == (prompt + 6, 1024)
    assert stats.ttft_s is not None
    assert stats.ttft_s > 0
    assert stats.mean_tok_s is not None
    assert stats.mean_tok_s > 0
    assert stats.seed is not None
    again = finish(say(engine)).stats
    assert again.reused_tokens == prompt - 1


def test_an_emoji_is_one_piece(tmp_path: Path) -> None:
    events = say(loaded(tmp_path, ["a😀é日本"]))
    assert [event.text for event in events if isinstance(event, Piece)] == ["a", "😀", "é", "日", "本"]


def test_a_reply_cut_off_inside_a_character_ends(tmp_path: Path) -> None:
    events = say(loaded(tmp_path, ["a😀"]), sampling=replace(GREEDY, max_new_tokens=3))
    assert text(events).startswith("a")
    assert finish(events).reason == "length"


def test_reasoning_is_apart_from_the_answer(tmp_path: Path) -> None:
    events = say(loaded(tmp_path, ["<think>\nOne and one.\n</think>\n\nTwo."]))
    assert text(events, "reasoning") == "One and one.\n"
    assert text(events) == "Two."


def test_max_new_tokens_ends_the_reply(tmp_path: Path) -> None:
    events = say(loaded(tmp_path, ["Hello."]), sampling=replace(GREEDY, max_new_tokens=4))
    assert text(events) == "Hell"
    assert (finish(events).reason, finish(events).stats.new_tokens) == ("length", 4)


@pytest.mark.parametrize(
    ("stop", "shown", "reason"),
    [(("END",), "one ", "stop"), (("ENDE",), "one END two", "stop"), (("two", "END"), "one ", "stop")],
)
def test_stop_strings_end_the_reply_unseen(tmp_path: Path, stop: tuple[str, ...], shown: str, reason: str) -> None:
    events = say(loaded(tmp_path, ["one END two"]), stop=stop)
    assert text(events) == shown
    assert finish(events).reason == reason


def test_stop_ids_of_the_generation_config_end_the_reply(tmp_path: Path) -> None:
    script = scripted_model(tmp_path, ASK, ["one! two"])
    (bang,) = Tokenizer.load(script).encode("!")
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [2, {bang}]}}', encoding="utf-8")
    engine = Engine()
    *_, _loaded = engine.load(script, OPTIONS)
    assert text(say(engine)) == "one"


def test_control_tokens_that_the_model_writes_are_not_shown(tmp_path: Path) -> None:
    assert text(say(loaded(tmp_path, ["a", 0, "b"]))) == "ab", "0 is the padding token"


def test_an_unfinished_reply_is_carried_on(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["one two"])
    (first,) = {text(say(engine, sampling=replace(GREEDY, max_new_tokens=3)))}
    events = say(engine, messages=(*ASK, Message("assistant", first)), continue_reply=True)
    assert first + text(events) == "one two"
    assert finish(events).stats.reused_tokens >= len(Tokenizer.load(tmp_path).render(ASK)) + 2


def test_the_end_of_the_context_ends_the_reply(tmp_path: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(scripted_model(tmp_path, ASK, ["a" * 900]), LoadOptions(context=256, threads=1))
    events = say(engine)
    assert finish(events).reason == "context"
    assert finish(events).stats.context_used == 256


def test_a_long_conversation_leaves_out_its_oldest_turns(tmp_path: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(scripted_model(tmp_path, ASK, []), LoadOptions(context=256, threads=1))
    turns = [Message("user" if n % 2 == 0 else "assistant", f"turn {n} " + "x" * 20) for n in range(11)]
    messages = (Message("system", "Be brief."), *turns)
    events = say(engine, messages=messages)
    truncated = events[0]
    assert isinstance(truncated, Truncated)
    tokenizer = Tokenizer.load(tmp_path)
    kept = tokenizer.render([messages[0], *turns[truncated.dropped_messages :]])
    assert 0 < truncated.dropped_messages < 11
    assert finish(events).stats.prompt_tokens == len(kept)
    assert truncated.dropped_tokens == len(tokenizer.render(messages)) - len(kept)


def test_every_cached_token_of_the_turns_before_is_reused(tmp_path: Path) -> None:
    answers = ("Hello.", "Fine, and the dog?", "Bye 😀")
    tokenizer = Tokenizer.load(scripted_model(tmp_path, ASK, []))
    (end,) = tokenizer.stop_ids
    messages, script = list(ASK), list[int]()
    for answer in answers:
        # Up to where this answer begins, the places belong to the prompt: what would be said there is never asked.
        script += [end] * (len(tokenizer.render(messages)) - len(tokenizer.render(ASK)) - len(script))
        script += tokenizer.encode(answer)
        messages += [Message("assistant", answer), Message("user", "go on")]
    engine = loaded(tmp_path, script)
    cached = 0
    for turn, answer in enumerate(answers):
        events = say(engine, messages=tuple(messages[: 2 * turn + 1]))
        stats = finish(events).stats
        assert text(events) == answer
        assert stats.reused_tokens == cached
        cached = stats.prompt_tokens + stats.new_tokens


def test_the_reply_is_reused_whatever_its_ids_were(tmp_path: Path) -> None:
    """The script spells its words letter by letter; encoded anew, they would be fewer ids."""
    letters = [one for letter in "the dog and the fox" for one in (ord(letter),)]
    tokenizer = Tokenizer.load(scripted_model(tmp_path, ASK, []))
    ids = [one for letter in letters for one in tokenizer.encode(chr(letter))]
    assert len(tokenizer.encode("the dog and the fox")) < len(ids)
    engine = loaded(tmp_path, ids)
    first = finish(say(engine)).stats
    events = say(engine, messages=(*ASK, Message("assistant", "the dog and the fox"), Message("user", "go on")))
    assert finish(events).stats.reused_tokens == first.prompt_tokens + first.new_tokens
