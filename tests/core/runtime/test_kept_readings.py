"""KV caches of conversations persist across program starts: nothing is read again, and replies do not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Finished, LoadOptions, Message, Piece, Prefill, Request, Sampling
from core.paths import kept_reading, kept_readings
from core.runtime.kept_readings import KeptReadings
from tests.core.tiny_tokenizer import chat_model

FIRST = Message("user", "the quick brown fox jumps over the lazy dog " * 8)
MORE = Message("user", "and the other dog asks for the answer")
FAMILIES = ["llama", "mistral", "gemma3_text", "qwen3_next", "lfm2", "mamba2"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "home"))


def started(model: Path, options: LoadOptions | None = None) -> Engine:
    engine = Engine()
    list(engine.load(model, options or LoadOptions(context=512, threads=1)))
    return engine


def ask(engine: Engine, *messages: Message, conversation: str = "one", most: int = 6) -> tuple[str, int]:
    """Return the reply, and the number of prompt tokens that did not have to be read."""
    sampling = Sampling(temperature=0, max_new_tokens=most)
    events = list(engine.chat(Request(messages, sampling, whole=True, conversation=conversation)))
    assert isinstance(events[-1], Finished), events
    said = "".join(event.text for event in events if isinstance(event, Piece))
    return said, next(event.reused for event in events if isinstance(event, Prefill))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on_after_a_restart_as_if_there_had_been_none(tmp_path: Path, family: str) -> None:
    model = chat_model(tmp_path / "model", family)
    engine = started(model)
    # Recurrent states cannot be cut back, and a random model's text does not always encode to the same ids again.
    ask(engine, FIRST, most=1)
    engine.close()
    turns = (FIRST, Message("assistant", "the dog"), MORE)
    fresh = started(model)
    expected, reused = ask(fresh, *turns, conversation="")
    assert reused == 0
    fresh.close()
    again = started(model)
    told, reused = ask(again, *turns)
    again.close()
    assert told == expected
    assert reused > 100


def test_a_file_grows_with_its_conversation_and_is_no_larger_than_what_it_holds(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model", "llama", hidden_size=256, intermediate_size=128, head_dim=64)
    engine = started(model)
    ask(engine, FIRST, most=1)
    loaded = engine.loaded
    assert loaded is not None
    loaded.settle(finish=True)
    before = kept_reading("one").read_bytes()
    turns = (FIRST, Message("assistant", "the dog"), MORE)
    second, _ = ask(engine, *turns)
    loaded.settle(finish=True)
    after = kept_reading("one").read_bytes()
    assert after.startswith(before)
    held = loaded.cache.nbytes * len(loaded.cache.tokens) / loaded.cache.capacity
    assert held < len(after) < 1.05 * held + 4096
    engine.close()
    again = started(model)
    assert ask(again, *turns)[0] == second
    again.close()


def test_an_edited_turn_cuts_the_file_back(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    engine = started(model)
    said, _ = ask(engine, FIRST)
    ask(engine, FIRST, Message("assistant", said), MORE)
    other = (FIRST, Message("assistant", said), Message("user", "you are the one " * 9))
    expected, _ = ask(engine, *other)
    engine.close()
    again = started(model)
    told, reused = ask(again, *other)
    again.close()
    assert told == expected
    assert reused > 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"anything else" * 100,
        lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:],
        lambda data: data[:8] + b"\xff" * 8 + data[16:],
        lambda data: data.replace(b'"tokens"', b'"tokenz"'),
        lambda data: data[:16] + b"[1, 2]" + data[22:],
    ],
)
def test_a_damaged_file_is_removed_and_the_prompt_read_again(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    model = chat_model(tmp_path / "model")
    engine = started(model)
    expected, _ = ask(engine, FIRST)
    engine.close()
    path = kept_reading("one")
    path.write_bytes(damage(path.read_bytes()))
    again = started(model)
    assert ask(again, FIRST) == (expected, 0)
    again.close()
    more = started(model)
    assert ask(more, FIRST)[1] > 100, "a sound one has taken its place"
    more.close()


def test_a_file_that_was_cut_off_is_used_as_far_as_it_is_sound(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    engine = started(model)
    expected, _ = ask(engine, FIRST)
    engine.close()
    path = kept_reading("one")
    path.write_bytes(path.read_bytes()[:-100])
    again = started(model)
    told, reused = ask(again, FIRST)
    again.close()
    assert told == expected
    assert reused > 100


def test_another_model_or_format_does_not_take_it(tmp_path: Path) -> None:
    one, other = chat_model(tmp_path / "one"), chat_model(tmp_path / "other", seed=1)
    engine = started(one)
    ask(engine, FIRST)
    engine.close()
    for model, options in ((other, LoadOptions(context=512)), (one, LoadOptions(context=512, format="int8"))):
        again = started(model, options)
        assert ask(again, FIRST, conversation="one")[1] == 0
        again.close()


def test_a_conversation_that_is_not_to_be_kept_leaves_nothing(tmp_path: Path) -> None:
    engine = started(chat_model(tmp_path / "model"))
    ask(engine, FIRST, conversation="")
    engine.close()
    assert not kept_readings().exists()


def test_the_least_recently_used_gives_way(tmp_path: Path) -> None:
    engine = started(chat_model(tmp_path / "model"))
    loaded = engine.loaded
    assert loaded is not None
    assert loaded.kept is not None
    ask(engine, FIRST)
    loaded.settle(finish=True)
    size = kept_reading("one").stat().st_size
    loaded.__dict__["kept"] = KeptReadings(loaded.kept.key, 5 * size // 2)
    for name in ("two", "three"):
        ask(engine, Message("user", name + FIRST.content[len(name) :]), conversation=name)
        loaded.settle(finish=True)
    engine.close()
    assert [kept_reading(name).exists() for name in ("one", "two", "three")] == [False, True, True]


def test_a_disk_that_takes_nothing_ends_no_reply(tmp_path: Path) -> None:
    engine = started(chat_model(tmp_path / "model"))
    kept_readings().parent.mkdir(parents=True, exist_ok=True)
    kept_readings().write_text("a file where the folder would be")
    said, _ = ask(engine, FIRST)
    assert ask(engine, FIRST)[0] == said
    engine.close()


def test_a_conversation_deleted_meanwhile_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "gone.kv", *listed(folder, pattern)])
    engine = started(chat_model(tmp_path / "model"))
    ask(engine, FIRST)
    engine.close()
    assert kept_reading("one").exists()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_cache_of_8_bits_is_kept_as_it_is(tmp_path: Path, family: str) -> None:
    model = chat_model(tmp_path / "model", family)
    options = LoadOptions(context=512, threads=1, kv="int8")
    engine = started(model, options)
    expected, _ = ask(engine, FIRST)
    engine.close()
    again = started(model, options)
    assert ask(again, FIRST)[0] == expected
    again.close()
    other = started(model)
    _, reused = ask(other, FIRST)
    other.close()
    assert reused == 0, "it was kept in another format"


def test_a_file_of_8_bits_has_the_newest_tokens_once_and_does_without_them(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model", "llama", hidden_size=256, intermediate_size=128, head_dim=64)
    options, turns = LoadOptions(context=512, threads=1, kv="int8"), [FIRST]
    engine = started(model, options)
    for more in ("the dog", "the fox", "one"):
        ask(engine, *turns, most=1)
        turns += [Message("assistant", more), MORE]
    loaded = engine.loaded
    assert loaded is not None
    loaded.settle(finish=True)
    size, tokens = kept_reading("one").stat().st_size, len(loaded.cache.tokens)
    held = loaded.spec.with_kv("int8").kv_bytes(tokens)
    assert held * 0.9 < size < 1.01 * held + 8192
    engine.close()
    data = bytearray(kept_reading("one").read_bytes())
    data[-5000] ^= 1
    kept_reading("one").write_bytes(data)
    again = started(model, options)
    said, reused = ask(again, *turns)
    again.close()
    assert said
    assert reused > 100, "what is damaged is of the newest tokens only, and packed ones stand for them"


def test_with_states_on_a_graphics_card(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    options = LoadOptions(context=512, simulate_gpu="vram=1GiB,link=12GB/s")
    engine = started(model, options)
    expected, _ = ask(engine, FIRST)
    engine.close()
    again = started(model, options)
    told, reused = ask(again, FIRST)
    again.close()
    assert told == expected
    assert reused > 100
