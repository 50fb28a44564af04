"""Replies with a card (the second device) that shrinks, fills up, is lost or returns: the same text, no failures."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch

from core.accelerators.base import Accelerator, cannot_pin
from core.accelerators.card import Card
from core.accelerators.simulated import SimulatedAccelerator
from core.engine import Engine
from core.errors import NotEnoughMemory
from core.events import (
    Event,
    Failed,
    Finished,
    Loading,
    LoadOptions,
    Message,
    Piece,
    Prefill,
    Replanned,
    Request,
    Sampling,
)
from core.runtime.loaded_model import UNLOCKED, LoadedModel
from core.runtime.loader import load_model
from tests.core.second_device import SecondCard, cannot_build, put_in
from tests.core.tiny_tokenizer import chat_model

CARD_BYTES = 60 << 20
SMALL_COPIES = 64 << 10
CARD = "vram=60MiB,link=2GB/s,gpu=100GB/s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a chat model of about 60 MB in fp32."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 7}
    return chat_model(tmp_path_factory.mktemp("chat"), **sizes)


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Make an engine with the second device, if it can be built, wherever it would simulate a card."""
    if not cannot_build():
        put_in(request.getfixturevalue("second"), monkeypatch)
    one = Engine()
    yield one
    one.close()


def loaded_of(engine: Engine) -> LoadedModel:
    assert engine.loaded is not None
    return engine.loaded


def device_of(engine: Engine) -> SecondCard | SimulatedAccelerator:
    device = loaded_of(engine).machine.accelerator(0)
    assert isinstance(device, SecondCard | SimulatedAccelerator)
    return device


def ask(new_tokens: int = 24) -> Request:
    return Request((Message("user", "Who is the fox?"),), Sampling(temperature=0, max_new_tokens=new_tokens))


def text_of(events: list[Event]) -> str:
    assert isinstance(events[-1], Finished), events[-1]
    return "".join(event.text for event in events if isinstance(event, Piece))


def load(engine: Engine, folder: Path, simulate_gpu: str | None = None) -> LoadedModel:
    events = list(engine.load(folder, LoadOptions(context=512, simulate_gpu=simulate_gpu)))
    assert not isinstance(events[-1], Failed), events[-1]
    return loaded_of(engine)


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    """Return the reply of the CPU alone."""
    engine = Engine()
    load(engine, folder)
    text = text_of(list(engine.chat(ask())))
    engine.close()
    assert len(text) > 10
    return text


@pytest.mark.parametrize("vram", [8, 16, 24, 64])
def test_a_card_answers_the_same_within_its_memory(engine: Engine, folder: Path, expected: str, vram: int) -> None:
    loaded = load(engine, folder, f"vram={vram}MiB,link=2GB/s")
    assert text_of(list(engine.chat(ask()))) == expected
    if loaded.plan.gpu == 0:
        memory = device_of(engine).memory()
        assert 0 < memory.peak <= vram << 20
        # Small inputs and results in flight are pinned, too.
        assert device_of(engine).pinned_bytes <= loaded.plan.ring.total + SMALL_COPIES


def test_device_lost_in_mid_reply(engine: Engine, folder: Path, expected: str) -> None:
    loaded = load(engine, folder, CARD)
    assert loaded.plan.gpu == 0
    events: list[Event] = []
    for event in engine.chat(ask()):
        events.append(event)
        if isinstance(event, Piece) and len(events) > 6:
            device_of(engine).lose()
    assert text_of(events) == expected
    assert any(isinstance(event, Replanned) for event in events)
    assert loaded.plan.gpu == -1
    # The next question is also answered.
    assert text_of(list(engine.chat(ask()))) == expected


def test_a_card_that_is_lost_after_its_speed_was_measured_ends_no_reply(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned is kept at the end of the reply, when the card says nothing any more."""
    monkeypatch.setattr("core.runtime.replanner.LEARN_TOKENS", 4)
    monkeypatch.setattr("core.runtime.replanner.worth_changing", lambda *_: False)
    loaded, events = load(engine, folder, CARD), list[Event]()
    device = device_of(engine)
    for event in engine.chat(ask()):
        events.append(event)
        if sum(isinstance(one, Piece) for one in events) == 8:
            device.lose()
    assert text_of(events) == expected
    assert loaded.profile.tokens >= 4
    assert loaded.plan.gpu == -1


def test_a_card_that_is_lost_while_it_is_full_ends_no_reply(engine: Engine, folder: Path, expected: str) -> None:
    loaded = load(engine, folder, CARD)
    device = device_of(engine)

    def full(*_: object) -> None:
        if loaded.cache.tokens and loaded.plan.gpu == 0:
            device.lose()
            raise NotEnoughMemory("", "", "", device=device.name)

    handle = loaded.model.module.model.layers[1].register_forward_pre_hook(full)
    events = list(engine.chat(ask()))
    handle.remove()
    assert text_of(events) == expected
    assert loaded.plan.gpu == -1


def test_a_card_that_is_full_in_mid_pass_is_used_less(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own operations (norms, attention) also allocate on the card, and fail with torch's own errors."""
    loaded = load(engine, folder, CARD)
    used, failing = loaded.plan.memory[-1].used, [True]

    def full(*_: object) -> None:
        if failing and loaded.cache.tokens:
            failing.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if isinstance(device := device_of(engine), SimulatedAccelerator):
        monkeypatch.setattr(device, "failures", partial(Card.failures, device))
    handle = loaded.model.module.model.layers[1].register_forward_pre_hook(full)
    events = list(engine.chat(ask()))
    handle.remove()
    assert text_of(events) == expected
    assert not failing
    assert any(isinstance(event, Replanned) for event in events)
    assert loaded.plan.gpu == 0
    assert loaded.plan.memory[-1].used < used


def test_card_shrinks_and_grows_in_mid_reply(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runtime.replanner.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("core.runtime.replanner.RETURN_EVERY_S", 0.0)
    load(engine, folder, CARD)
    device = device_of(engine)
    before, events, used = device.memory().used, [], []
    for event in engine.chat(ask()):
        events.append(event)
        used.append(device.memory().used)
        if sum(isinstance(one, Piece) for one in events) == 4:
            device.resize(12 << 20)
    assert text_of(events) == expected
    assert before > 12 << 20 >= used[-1]
    assert any(isinstance(event, Replanned) for event in events)
    device.resize(CARD_BYTES)
    for _ in range(2):
        assert text_of(list(engine.chat(ask()))) == expected
    assert device.memory().used > 12 << 20


def test_a_cache_that_is_lost_with_the_card_is_read_again_in_mid_reply(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like recurrent states, which cannot be copied back."""
    monkeypatch.setattr("core.runtime.replanner.LOOK_EVERY_S", 0.0)
    loaded, events = load(engine, folder, CARD), list[Event]()
    loaded.cache.can_rewind = False
    for event in engine.chat(ask()):
        events.append(event)
        if sum(isinstance(one, Piece) for one in events) == 4 and loaded.plan.gpu == 0:
            device_of(engine).resize(1 << 20)
    assert text_of(events) == expected
    assert loaded.plan.gpu == -1
    moved = next(index for index, event in enumerate(events) if isinstance(event, Replanned))
    assert any(isinstance(event, Prefill) and not event.reused for event in events[moved:])


def test_a_person_limits_the_card_and_gives_it_back(engine: Engine, folder: Path, expected: str) -> None:
    loaded = load(engine, folder, CARD)
    model, before = loaded.model, device_of(engine).memory().used
    assert text_of(list(engine.chat(ask()))) == expected
    for vram, most in ((12 << 20, 12 << 20), (None, CARD_BYTES), (0, 0), (None, CARD_BYTES)):
        (event,) = engine.replan(vram, None)
        assert isinstance(event, Replanned), event
        assert event.plan == loaded.plan
        assert device_of(engine).memory().used <= most
        assert text_of(list(engine.chat(ask()))) == expected
    assert device_of(engine).memory().used >= before
    assert loaded.model is model, "nothing was loaded again"


def test_a_limit_that_cannot_be_kept_to_changes_nothing(engine: Engine, folder: Path, expected: str) -> None:
    loaded = load(engine, folder, CARD)
    plan = loaded.plan
    (event,) = engine.replan(None, 1 << 20)
    assert isinstance(event, Failed)
    assert isinstance(event.error, NotEnoughMemory)
    assert (loaded.plan, loaded.budget.ram) == (plan, None)
    assert text_of(list(engine.chat(ask()))) == expected


def test_a_card_that_was_lost_is_used_again_when_it_is_back(engine: Engine, folder: Path, expected: str) -> None:
    loaded = load(engine, folder, CARD)
    for in_reply in (True, False):
        device = device_of(engine)
        device.lose()
        if in_reply:
            assert text_of(list(engine.chat(ask()))) == expected
            assert loaded.plan.gpu == -1
        (event,) = engine.replan(None, None)
        assert isinstance(event, Replanned)
        assert loaded.plan.gpu == 0
        assert device_of(engine) is not device
        assert text_of(list(engine.chat(ask()))) == expected


def test_second_turn_reuses_the_cache_on_the_device(engine: Engine, folder: Path) -> None:
    load(engine, folder, CARD)
    list(engine.chat(ask(4)))
    held = len(loaded_of(engine).cache.tokens)
    again = next(event for event in engine.chat(ask(4)) if isinstance(event, Prefill))
    assert 0 < again.reused <= held


def full_from(
    monkeypatch: pytest.MonkeyPatch, device: SecondCard | SimulatedAccelerator, after: int, times: int = 1000
) -> None:
    """Make allocations fail after so many successful ones."""
    if isinstance(device, SecondCard):
        device.told.set(full_after=after)
        device.told.set(full_times=1e9 if times == 1000 else times)
        return
    limit, calls = device.allowed, count(1)
    monkeypatch.setattr(device, "allowed", lambda: 0 if after < next(calls) <= after + times else limit())


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_a_card_that_fills_up_while_weights_move_is_used_less_or_left(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr("core.runtime.replanner.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("core.runtime.replanner.RETURN_EVERY_S", 1e9)
    loaded, events = load(engine, folder, CARD), list[Event]()
    device = device_of(engine)
    for event in engine.chat(ask()):
        events.append(event)
        if sum(isinstance(one, Piece) for one in events) == 4 and device.memory().total == CARD_BYTES:
            device.resize(44 << 20)
            full_from(monkeypatch, device, 0, times)
    assert text_of(events) == expected
    assert any(isinstance(event, Replanned) for event in events)
    assert loaded.plan.gpu == (-1 if times == 1000 else 0)
    assert text_of(list(engine.chat(ask()))) == expected


@pytest.mark.parametrize("after", [0, 1, 5, 12, 20])
def test_a_card_that_fills_up_on_the_way_back_to_it_is_left(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After any number of uploads: biases, norms, the ring, weights."""
    loaded = load(engine, folder, CARD)
    assert isinstance(next(iter(engine.replan(0, None))), Replanned)
    assert loaded.plan.gpu == -1
    full_from(monkeypatch, device_of(engine), after)
    (event,) = engine.replan(None, None)
    assert isinstance(event, Failed | Replanned)
    assert loaded.plan.gpu == -1
    assert text_of(list(engine.chat(ask()))) == expected
    monkeypatch.setattr("core.runtime.replanner.RETURN_EVERY_S", 0.0)
    assert text_of(list(engine.chat(ask()))) == expected


def test_the_computers_own_memory_being_full_does_not_cost_the_card(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(engine, folder, CARD)

    def too_large(*_: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    handle = loaded.model.module.model.layers[1].register_forward_pre_hook(too_large)
    *_, failed = engine.chat(ask())
    handle.remove()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NotEnoughMemory)
    assert failed.error.device == "cpu"
    assert loaded.plan.gpu == 0
    assert text_of(list(engine.chat(ask()))) == expected


@pytest.mark.parametrize("phase", ["convert", "place"])
def test_a_load_that_is_stopped_gives_everything_back(engine: Engine, folder: Path, phase: str) -> None:
    before = set(threading.enumerate())
    steps = load_model(folder, LoadOptions(context=512, simulate_gpu=CARD))
    for step in steps:
        assert isinstance(step, Loading)
        if step.phase == phase:
            break
    steps.close()
    assert set(threading.enumerate()) <= before
    if hasattr(psutil.Process, "memory_maps"):
        gc.collect()
        assert not [entry.path for entry in psutil.Process().memory_maps() if str(folder) in entry.path]


def test_memory_that_may_not_be_pinned_is_done_without(
    engine: Engine, folder: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Accelerator, nbytes: int) -> torch.Tensor:
        raise cannot_pin(nbytes)

    monkeypatch.setattr(SimulatedAccelerator, "pinned", refuse)
    monkeypatch.setattr(SecondCard, "pinned", refuse)
    loaded = load(engine, folder, "vram=12MiB,link=20GB/s,gpu=200GB/s")
    assert loaded.plan.ring.buffers
    assert UNLOCKED in loaded.plan.reasons
    assert text_of(list(engine.chat(ask()))) == expected
