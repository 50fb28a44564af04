"""Replies with known text, through the engine's API: models whose weights make them say a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import Engine
from core.errors import ModelFailed
from core.events import (
    Event,
    Failed,
    Finished,
    LoadOptions,
    Message,
    Piece,
    Prefill,
    Request,
    Sampling,
    Stats,
    Truncated,
)
from core.generation.tokenizer import Tokenizer
from core.model.blueprint import decoder_layers
from tests.core.generation.family_templates import DEEPSEEK_R1, GEMMA, QWEN35
from tests.core.tiny_tokenizer import TEMPLATE, scripted_model, write_tokenizer

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


def test_a_model_whose_program_fails_says_so_and_answers_the_next_time(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["Hello."])
    assert engine.loaded is not None
    layer = decoder_layers(engine.loaded.model.module)[-1]
    for raised in (ZeroDivisionError("nothing to share"), AssertionError(), RuntimeError("sizes differ\nat line 3")):

        def fail(*_: object, raised: Exception = raised) -> None:
            raise raised

        hook = layer.register_forward_pre_hook(fail)
        failed = say(engine)[-1]
        hook.remove()
        assert isinstance(failed, Failed)
        assert type(failed.error) is ModelFailed
        assert "\n" not in str(failed.error)
        assert text(say(engine)) == "Hello."


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
        # The positions before this answer belong to the prompt, so that their tokens are never drawn.
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


def carried_on(engine: Engine, first: Sequence[Event]) -> list[Event]:
    """Continue the reply of these events as the window does."""
    reply = Message("assistant", text(first), text(first, "reasoning"))
    return say(engine, messages=(*ASK, reply), continue_reply=True)


LONG = "<think>\nOne 😀 and <b>one</b>.\n</think>\n\nTwo: <think> and </think> are tags, 日本."


@pytest.mark.parametrize("cut", [1, 5, 8, 13, 16, 36, 39, 44, 48, 60, 76])
def test_a_reply_is_carried_on_wherever_it_was_left(tmp_path: Path, cut: int) -> None:
    """Within a thought, a mark, a character, or an answer that mentions marks: by its ids."""
    engine = loaded(tmp_path, [LONG])
    first = say(engine, sampling=replace(GREEDY, max_new_tokens=cut))
    second = carried_on(engine, first)
    whole = say(engine)
    assert finish(second).stats.prompt_tokens == finish(first).stats.context_used
    together = {kind: text(first, kind) + text(second, kind) for kind in ("answer", "reasoning")}
    assert together["answer"] == text(whole)
    # Text that looked like part of the thought, and became its closing mark, has been emitted already.
    assert together["reasoning"].startswith(text(whole, "reasoning"))
    assert "</think>".startswith(together["reasoning"].removeprefix(text(whole, "reasoning")))


@pytest.mark.parametrize("template", [DEEPSEEK_R1, QWEN35, TEMPLATE])
@pytest.mark.parametrize(
    ("content", "thought"), [("", "One and"), ("Two", "One and one."), ("In <think> and </think> tags", ""), ("", "")]
)
def test_a_reply_of_another_day_is_carried_on_with_its_thought(
    tmp_path: Path, template: str, content: str, thought: str
) -> None:
    """After a restart there are no ids: the prompt is the question's, then the reply as the model wrote it."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, template))
    asked = tokenizer.render(ASK)
    ids = tokenizer.render((*ASK, Message("assistant", content, thought)), continue_reply=True)
    assert ids[: len(asked)] == asked
    written = tokenizer.decode(ids[len(asked) :])
    assert written.endswith(content or thought)
    assert thought in written
    assert bool(content and thought) == ("</think>" in written.removesuffix(content)) or template != TEMPLATE


def test_a_reply_of_another_day_goes_on_inside_its_thought(tmp_path: Path) -> None:
    messages = (*ASK, Message("assistant", "", "One and"))
    tokenizer = Tokenizer.load(scripted_model(tmp_path, ASK, []))
    places = len(tokenizer.render(messages, continue_reply=True)) - len(tokenizer.render(ASK))
    engine = loaded(tmp_path, [*[300] * places, " one.</think>Two."])
    events = say(engine, messages=messages, continue_reply=True)
    assert (text(events, "reasoning"), text(events)) == (" one.", "Two.")


def test_a_reply_that_was_edited_is_carried_on_as_it_reads(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["one two three"])
    say(engine, sampling=replace(GREEDY, max_new_tokens=3))
    events = say(engine, messages=(*ASK, Message("assistant", "uno")), continue_reply=True)
    tokenizer = Tokenizer.load(tmp_path)
    rendered = tokenizer.render((*ASK, Message("assistant", "uno")), continue_reply=True)
    assert finish(events).stats.prompt_tokens == len(rendered)


def test_a_reply_that_never_began_is_begun(tmp_path: Path) -> None:
    events = say(
        loaded(tmp_path, ["<think>a</think>b"]), messages=(*ASK, Message("assistant", "")), continue_reply=True
    )
    assert (text(events, "reasoning"), text(events)) == ("a", "b")


def test_a_stop_string_is_not_carried_over(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["one END two"])
    first = say(engine, stop=("END",))
    asked = Tokenizer.load(tmp_path).render((*ASK, Message("assistant", "one ")), continue_reply=True)
    assert finish(carried_on(engine, first)).stats.prompt_tokens == len(asked)


def test_half_a_surrogate_pair_in_a_question_is_answered(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ["x" * 40])
    assert finish(say(engine, messages=(Message("user", chr(0xD83D)),), sampling=replace(GREEDY, max_new_tokens=3)))


def test_a_full_context_ends_no_chat_whose_template_insists_on_turns(tmp_path: Path) -> None:
    scripted_model(tmp_path, ASK, ["a" * 900])
    write_tokenizer(tmp_path, GEMMA)
    engine = Engine()
    *_, _loaded = engine.load(tmp_path, LoadOptions(context=256, threads=1))
    messages: tuple[Message, ...] = (Message("system", "Be brief."),)
    truncated = 0
    for turn in range(8):
        messages = (*messages, Message("user", f"question {turn} " + "x" * 30))
        events = say(engine, messages=messages, sampling=replace(GREEDY, max_new_tokens=20))
        truncated += isinstance(events[0], Truncated)
        assert finish(events).reason in ("length", "stop")
        if turn % 3:  # Every third reply was stopped before its first token.
            messages = (*messages, Message("assistant", text(events)))
    assert truncated
