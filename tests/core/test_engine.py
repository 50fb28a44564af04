"""The engine's API with real models: loading, several turns, stopping, closing."""

from __future__ import annotations

import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.engine import Engine
from core.errors import ModelUnreadable
from core.events import (
    LOADING_PHASES,
    Checked,
    Event,
    Failed,
    Finished,
    Loaded,
    Loading,
    LoadOptions,
    Message,
    Piece,
    Prefill,
    Request,
    Sampling,
    Unloaded,
)
from core.model.host_weights import FOLDER
from core.paths import HOME_VARIABLE, cache_folder
from core.runtime.loader import open_model
from tests.core.tiny_tokenizer import chat_model

ONE_THREAD = LoadOptions(threads=1)
GREEDY = Sampling(temperature=0.0, max_new_tokens=60)
QUESTIONS = ("Hello!", "What is HeteGen?", "How do I get a model?")


@pytest.fixture(scope="module")
def guide() -> Engine:
    """Provide the built-in model."""
    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    return engine


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model with random weights, so large that a long prompt takes seconds on one core."""
    size = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "max_position_embeddings": 4096}
    return chat_model(tmp_path_factory.mktemp("large"), eos_token_id=None, **size)


def ask(engine: Engine, *messages: Message, sampling: Sampling = GREEDY) -> tuple[str, Finished]:
    events = list(engine.chat(Request(messages, sampling)))
    last = events[-1]
    assert isinstance(last, Finished), last
    return "".join(event.text for event in events if isinstance(event, Piece)), last


def test_loading_tells_how_far_it_is() -> None:
    engine = Engine()
    *steps, loaded = engine.load(None, ONE_THREAD)
    assert isinstance(loaded, Loaded)
    assert all(isinstance(step, Loading) for step in steps)
    fractions = [step.fraction for step in steps if isinstance(step, Loading)]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] == 1.0
    phases = list(dict.fromkeys(step.phase for step in steps if isinstance(step, Loading)))
    assert phases == [phase for phase in LOADING_PHASES if phase in phases]
    assert loaded.can_chat
    assert loaded.architecture == "LlamaForCausalLM"
    assert loaded.context >= 1024
    assert loaded.weight_bytes > 1_000_000


def test_an_edited_turn_gives_what_a_new_conversation_gives(guide: Engine) -> None:
    first, _ = ask(guide, Message("user", QUESTIONS[0]))
    ask(guide, Message("user", QUESTIONS[0]), Message("assistant", first), Message("user", QUESTIONS[1]))
    edited = (Message("user", QUESTIONS[0]), Message("assistant", first), Message("user", QUESTIONS[2]))
    reply, last = ask(guide, *edited)
    assert last.stats.reused_tokens > 0
    fresh = Engine()
    *_, _loaded = fresh.load(None, ONE_THREAD)
    assert ask(fresh, *edited)[0] == reply


def test_a_seed_repeats_a_reply(tmp_path: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(chat_model(tmp_path), ONE_THREAD)
    question = Message("user", "hi")
    replies = [
        ask(engine, question, sampling=Sampling(seed=seed, temperature=4.0, max_new_tokens=20))[0] for seed in (1, 2, 1)
    ]
    assert replies[0] == replies[2] != replies[1]
    reply, last = ask(engine, question, sampling=Sampling(temperature=4.0, max_new_tokens=20))
    named = Sampling(seed=last.stats.seed, temperature=4.0, max_new_tokens=20)
    assert ask(engine, question, sampling=named)[0] == reply, "a reply names the seed that it was drawn with"


@pytest.mark.parametrize("after", [0, 1, 4])
def test_loading_can_be_stopped_and_done_again(after: int, large: Path) -> None:
    engine = Engine()
    questions = iter(range(100))
    *_, last = engine.load(large, ONE_THREAD, lambda: next(questions) >= after)
    assert isinstance(last, Finished)
    assert last.reason == "stopped"
    (failed,) = engine.chat(Request((Message("user", "hi"),)))
    assert isinstance(failed, Failed)
    *_, loaded = engine.load(None, ONE_THREAD)
    assert isinstance(loaded, Loaded)


@pytest.mark.parametrize("where", [Prefill, Piece])
def test_a_reply_stops_soon(where: type[Event], large: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(large, ONE_THREAD)
    question = Message("user", "dog " * 900 if where is Prefill else "dog")
    asked = Clock()
    events = engine.chat(Request((question,), Sampling(temperature=0.0)), asked.stop)
    last = _stop_at(events, where, asked)
    assert last.reason == "stopped"
    assert asked.seconds() < 5, "a second is promised"
    # The part that was read is valid: the same question is answered as by an engine that was never stopped.
    small = Sampling(temperature=0.0, max_new_tokens=8)
    reply, again = ask(engine, Message("user", "dog"), sampling=small)
    fresh = Engine()
    *_, _loaded = fresh.load(large, ONE_THREAD)
    assert ask(fresh, Message("user", "dog"), sampling=small)[0] == reply
    assert again.reason == "length"


def test_closing_gives_the_files_back(tmp_path: Path) -> None:
    """On Windows a file that is still mapped cannot be deleted."""
    folder = chat_model(tmp_path / "model")
    engine = Engine()
    *_, loaded = engine.load(folder, ONE_THREAD)
    assert isinstance(loaded, Loaded)
    ask(engine, Message("user", "hi"), sampling=Sampling(max_new_tokens=4))
    engine.close()
    if hasattr(psutil.Process, "memory_maps"):
        assert not [entry.path for entry in psutil.Process().memory_maps() if str(folder) in entry.path]
    shutil.rmtree(folder)
    (failed,) = engine.chat(Request((Message("user", "hi"),)))
    assert isinstance(failed, Failed)


def test_loading_gives_the_model_before_up(tmp_path: Path) -> None:
    """Two models never lie in memory at once."""
    engine = Engine()
    *_, first = engine.load(chat_model(tmp_path / "one"), ONE_THREAD)
    assert isinstance(first, Loaded)
    assert engine.loaded is not None
    before = weakref.ref(engine.loaded)
    events = engine.load(chat_model(tmp_path / "two", seed=1), ONE_THREAD)
    checked = list(takewhile(lambda event: not isinstance(event, Unloaded), events))
    assert before() is None
    assert {event.phase for event in checked if isinstance(event, Loading)} == {"start", "read", "tokenizer", "measure"}
    *_, second = events
    assert isinstance(second, Loaded)


def missing(folder: Path) -> LoadOptions:
    shutil.rmtree(folder)
    return ONE_THREAD


def without_model(folder: Path) -> LoadOptions:
    for file in folder.iterdir():
        file.unlink()
    (folder / "notes.txt").write_text("shopping", "utf-8")
    return ONE_THREAD


def truncated(folder: Path) -> LoadOptions:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return ONE_THREAD


def of_unknown_kind(folder: Path) -> LoadOptions:
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"llama"', '"nonsense"'), "utf-8")
    return ONE_THREAD


def with_a_broken_tokenizer(folder: Path) -> LoadOptions:
    (folder / "tokenizer.json").write_text("no tokenizer", "utf-8")
    return ONE_THREAD


def with_a_draft_of_other_tokens(folder: Path) -> LoadOptions:
    draft = chat_model(folder.parent / "draft")
    known = json.loads((draft / "tokenizer.json").read_text("utf-8"))
    words = known["model"]["vocab"]
    words["!"], words["#"] = words["#"], words["!"]
    (draft / "tokenizer.json").write_text(json.dumps(known), "utf-8")
    return replace(ONE_THREAD, draft=str(draft))


def too_large(folder: Path) -> LoadOptions:
    return replace(ONE_THREAD, ram=1 << 10)


def with_too_long_a_context(folder: Path) -> LoadOptions:
    return replace(ONE_THREAD, context=1_000_000)


@pytest.mark.parametrize(
    "broken",
    [
        missing, without_model, truncated, of_unknown_kind, with_a_broken_tokenizer, with_a_draft_of_other_tokens,
        too_large, with_too_long_a_context,
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used_leaves_the_model_before(
    broken: Callable[[Path], LoadOptions], tmp_path: Path
) -> None:
    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    question = Message("user", QUESTIONS[0])
    reply, _ = ask(engine, question)
    other = chat_model(tmp_path / "other")
    *_, failed = engine.load(other, broken(other))
    assert isinstance(failed, Failed)
    again, last = ask(engine, question)
    assert again == reply
    assert last.stats.reused_tokens, "what it has read is not read again"


@pytest.mark.parametrize("broken", [of_unknown_kind, with_a_broken_tokenizer, too_large])
def test_checks_beside_replies_change_no_token(broken: Callable[[Path], LoadOptions], tmp_path: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    question = Message("user", QUESTIONS[0])
    expected, _ = ask(engine, question)
    good, bad = chat_model(tmp_path / "good"), chat_model(tmp_path / "bad")
    options = broken(bad)
    ends: list[Event] = []

    def check_both() -> None:
        ends.extend([*engine.check(good, ONE_THREAD)][-1:])
        ends.extend([*engine.check(bad, options)][-1:])

    checks = threading.Thread(target=check_both)
    checks.start()
    replies = {ask(engine, question)[0]}
    while checks.is_alive():
        replies.add(ask(engine, question)[0])
    assert replies == {expected}
    assert ends[0] == Checked()
    assert isinstance(ends[1], Failed)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect the models that are opened."""
    sources: list[object] = []

    def counting(source: object, options: LoadOptions) -> Any:
        sources.append(source)
        return open_model(source, options)  # type: ignore[arg-type]

    monkeypatch.setattr("core.engine.open_model", counting)
    return sources


def test_a_model_that_was_checked_is_read_once(tmp_path: Path, opened: list[object]) -> None:
    other, engine = chat_model(tmp_path / "other"), Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    with closing(engine.chat(Request((Message("user", QUESTIONS[0]),), GREEDY))) as reply:
        next(reply)
        *_, fine = engine.check(other, ONE_THREAD)
    *steps, loaded = engine.load(other, ONE_THREAD)
    assert fine == Checked()
    assert isinstance(loaded, Loaded)
    assert Unloaded() in steps
    assert opened == [None, other]
    again, _ = ask(engine, Message("user", QUESTIONS[0]))
    *_, _loaded = engine.load(other, ONE_THREAD)
    assert opened == [None, other, other], "its files may have changed"
    assert ask(engine, Message("user", QUESTIONS[0]))[0] == again


def test_what_was_checked_is_forgotten(tmp_path: Path, opened: list[object]) -> None:
    other, engine = chat_model(tmp_path / "other"), Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    list(engine.check(other, ONE_THREAD))
    ask(engine, Message("user", QUESTIONS[0]))
    *_, _loaded = engine.load(other, ONE_THREAD)
    assert opened == [None, other, other], "a reply came between"
    list(engine.check(other, ONE_THREAD))
    *_, _loaded = engine.load(other, replace(ONE_THREAD, context=256))
    assert len(opened) == 5, "another one was checked"
    list(engine.check(other, ONE_THREAD, lambda: True))
    *_, _loaded = engine.load(other, ONE_THREAD)
    assert len(opened) == 7, "the check was cancelled"


def test_a_load_that_is_cancelled_after_its_check_leaves_the_model_before(tmp_path: Path) -> None:
    other, engine = chat_model(tmp_path / "other"), Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    list(engine.check(other, ONE_THREAD))
    *_, last = engine.load(other, ONE_THREAD, lambda: True)
    assert isinstance(last, Finished)
    assert ask(engine, Message("user", QUESTIONS[0]))[0]


def test_a_load_that_is_stopped_before_it_takes_memory_leaves_the_model_before(large: Path) -> None:
    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    *_, last = engine.load(large, ONE_THREAD, lambda: True)
    assert isinstance(last, Finished)
    assert ask(engine, Message("user", QUESTIONS[0]))[0]


def test_a_model_that_breaks_while_it_is_loaded_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[float]:
        raise ModelUnreadable("The disk is gone.")

    engine = Engine()
    *_, _loaded = engine.load(None, ONE_THREAD)
    monkeypatch.setattr("core.runtime.loader.fill", broken)
    *events, failed = engine.load(chat_model(tmp_path), ONE_THREAD)
    assert Unloaded() in events
    assert isinstance(failed, Failed)
    (answer,) = engine.chat(Request((Message("user", "hi"),)))
    assert isinstance(answer, Failed), "the old model is not answered with under the new one's name"


class Clock:
    """A stop that records when it was asked, in seconds of the processor for this process, whatever else runs."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def ask(self) -> None:
        self._asked_at = time.process_time()

    def stop(self) -> bool:
        return self._asked_at is not None

    def seconds(self) -> float:
        assert self._asked_at is not None
        return time.process_time() - self._asked_at


def _stop_at(events: Iterator[Event], where: type[Event], clock: Clock) -> Finished:
    condition: Callable[[Event], bool] = lambda event: isinstance(event, where)  # noqa: E731
    for event in events:
        if condition(event) and not clock.stop():
            clock.ask()
        if isinstance(event, Finished):
            return event
    raise AssertionError("no end")


def test_converted_weights_that_cannot_be_kept_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example if the cache is on a read-only or missing drive."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    cache_folder().mkdir(parents=True)
    (cache_folder() / FOLDER).write_text("in the way of a folder", encoding="utf-8")
    engine = Engine()
    *_, loaded = engine.load(chat_model(tmp_path / "model"), replace(ONE_THREAD, format="int8"))
    assert isinstance(loaded, Loaded), loaded
    assert ask(engine, Message("user", "hi"), sampling=Sampling(max_new_tokens=4))[1].reason == "length"
    engine.close()
