"""The vision tower lies on the card if there is room, otherwise in RAM: the same tokens as in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Finished, LoadOptions, Piece, Prefill, Replanned, Request
from core.planning.planner import explain
from core.planning.sight import without_sight
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from tests.core.layers.test_cpu_layers import with_host_layers
from tests.core.second_device import SecondDevice, put_in
from tests.core.vision.seeing import IMAGES, expected_tokens, make_seeing
from tests.core.vision.test_seeing import GREEDY, ONE, THREE, tokens

pytestmark = pytest.mark.usefixtures("steady")
ROOMY = LoadOptions(context=1024, threads=1, simulate_gpu="vram=2GiB,link=12GB/s")
TIGHT = replace(ROOMY, simulate_gpu="vram=300MiB,link=12GB/s")
"""Room for all of a tiny model, but not for a picture's activations."""


@pytest.fixture(params=["simulated", "second"])
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "second":
        put_in(request.getfixturevalue("second"), monkeypatch)


def placed(folder: Path, options: LoadOptions) -> LoadedModel:
    *_, model = load_model(folder, options)
    assert isinstance(model, LoadedModel)
    assert model.plan.gpu >= 0
    return model


def device_of_tower(model: LoadedModel) -> str:
    assert model.tower is not None
    return next(one for part in model.tower.parts for one in part.parameters()).device.type


@pytest.mark.parametrize("kind", IMAGES)
def test_the_same_tokens_on_a_device_from_ram_and_from_there(
    kind: str, second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(second, monkeypatch)
    expected = expected_tokens(make_seeing(kind, tmp_path), tmp_path, THREE, 6)
    for options, where in ((ROOMY, "second"), (TIGHT, "cpu")):
        model = placed(tmp_path, options)
        assert tokens(model, THREE, 6)[0] == expected
        assert device_of_tower(model) == where
        model.close()
        assert device_of_tower(model) == "cpu"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
def test_the_same_tokens_where_the_processor_has_layers_and_their_states(
    kind: str, second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(second, monkeypatch)
    expected = expected_tokens(make_seeing(kind, tmp_path), tmp_path, THREE, 6)
    model = placed(tmp_path, ROOMY)
    for hosted in ((model.spec.layers - 1,), tuple(range(model.spec.layers)), ()):
        model.move_to(with_host_layers(model, hosted))
        model.cache.reset()
        assert tokens(model, THREE, 6)[0] == expected
    model.close()


def test_the_plan_says_where_what_sees_lies(tmp_path: Path) -> None:
    make_seeing("llava", tmp_path)
    for options, where in ((ROOMY, "graphics card"), (TIGHT, "computer's memory")):
        model = placed(tmp_path, options)
        cpu, card = model.plan.memory
        assert (cpu.sight == 0) == (card.sight > 0) == (model.plan.sight_gpu >= 0) == (where == "graphics card")
        lines = explain(model.plan, model.spec, model.machine.now())
        assert any("pictures" in line and where in line for line in lines)
        assert model.sight_to_come == card.sight
        model.open_vision()
        assert model.sight_to_come == 0
        model.close()


@pytest.mark.usefixtures("_device")
def test_what_sees_follows_the_model_from_the_card_and_back(tmp_path: Path) -> None:
    expected = expected_tokens(make_seeing("qwen2_5_vl", tmp_path), tmp_path, THREE, 6)
    model = placed(tmp_path, ROOMY)
    plan = model.plan
    assert tokens(model, THREE, 6)[0] == expected
    model.to_host()
    assert device_of_tower(model) == "cpu"
    model.cache.reset()
    assert tokens(model, THREE, 6)[0] == expected
    for there in (plan, without_sight(plan)):
        model.move_to(there)
        model.cache.reset()
        assert tokens(model, THREE, 6)[0] == expected
    model.close()


def test_a_card_that_is_full_at_a_picture_costs_neither_reply_nor_conversation(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(second, monkeypatch)
    make_seeing("llava", tmp_path)
    request = Request(THREE, replace(GREEDY, max_new_tokens=6), whole=True)
    engine = Engine()
    list(engine.load(tmp_path, LoadOptions(context=1024, threads=1)))
    expected = said(engine, request)[0]
    list(engine.load(tmp_path, ROOMY))
    model = engine.loaded
    assert model is not None
    said(engine, replace(request, messages=ONE))
    tower = model.tower
    assert tower is not None

    def fill_once(*_: object) -> None:
        hook.remove()
        second.set(full_after=1, full_times=1)

    hook = tower.parts[0].register_forward_pre_hook(fill_once)
    told, events = said(engine, request)
    assert told == expected
    changes = [event for event in events if isinstance(event, Replanned)]
    assert [str(one.reason) for one in changes] == [
        "The graphics memory was full; the processor looks at pictures now."
    ]
    assert model.plan.gpu >= 0 > model.plan.sight_gpu
    assert device_of_tower(model) == "cpu"
    assert [one.reused for one in events if isinstance(one, Prefill)][-1] > 0
    engine.close()


def said(engine: Engine, request: Request) -> tuple[str, list[object]]:
    events: list[object] = list(engine.chat(request))
    assert isinstance(events[-1], Finished), events
    return "".join(event.text for event in events if isinstance(event, Piece)), events


@pytest.mark.usefixtures("_device")
def test_a_card_without_room_for_what_sees_leaves_it_in_ram(tmp_path: Path) -> None:
    expected = expected_tokens(make_seeing("llava", tmp_path), tmp_path, ONE, 6)
    model = placed(tmp_path, ROOMY)
    card = model.machine.accelerator(0)
    card.limit(card.memory().used + 4096)
    model.open_vision()
    card.limit(None)
    assert tokens(model, ONE, 6)[0] == expected
    assert device_of_tower(model) == "cpu"
    assert model.plan.sight_gpu < 0
    model.close()
