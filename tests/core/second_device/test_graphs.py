"""Passes, or runs of layers in them, that lie on a card: captured on the second device and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.engine import Engine
from core.errors import HeteGenError, ModelFailed
from core.events import Event, Finished, LoadOptions, Message, Piece, Request, Sampling
from core.hardware.call_overhead import replay_saves
from core.model.captured_run import FIRST_PASSES
from core.planning.capture import capturable
from core.spec import Format, KvFormat, Ring, Rows
from tests.core.families import FAMILIES
from tests.core.offload.test_hetero_linear import TOKENS, Bench, plan_of
from tests.core.second_device import SecondCard, SecondDevice, put_in
from tests.core.second_device.placed import (
    FEW_PLACES,
    GRAPHS,
    LENDING,
    PLANS,
    ROOM,
    Placed,
    divided,
    launches,
    whole,
    with_graphs,
)  # fmt: skip
from tests.core.tiny_tokenizer import chat_model

pytestmark = pytest.mark.skipif(not hasattr(torch.accelerator, "Graph"), reason="this torch has no graphs for all")

CAPTURED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite", "gpt_neox", "opt", "gpt2",
    "smollm3",
)  # fmt: skip
OF_THEIR_OWN = ("falcon", "mpt", "bloom", "xglm")
"""Families with attention of their own: its inputs lie in the cache, but these models count the tokens themselves."""


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("family", [*FAMILIES, *OF_THEIR_OWN[1:], "smollm3", "deepseek_v3", "lfm2"])
def test_same_tokens_in_every_family(second: SecondDevice, card: SecondCard, tmp_path: Path, family: str) -> None:
    """Also where no plan would allow a capture: a pass that cannot be captured, or gives other results, is not used."""
    bench = Bench(family, tmp_path, **FEW_PLACES.get(family, {}))
    plan = whole(bench.spec)
    assert bench.run(plan, plan, card) == bench.expected
    assert (second.get("replays") > TOKENS // 2) == (family in CAPTURED)
    assert (capturable(plan, bench.spec) == (plan.captured, ())) == (family in (*CAPTURED, *OF_THEIR_OWN))


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "granite", "gpt_neox", "opt", "gpt2", "smollm3"]
)
def test_same_tokens_where_some_layers_are_divided(
    second: SecondDevice, card: SecondCard, tmp_path: Path, family: str
) -> None:
    bench = Bench(family, tmp_path)
    layers = tuple(range(bench.spec.layers))
    first, last = divided(bench.spec, 0), divided(bench.spec, layers[-1])
    assert (first.captured, last.captured) == (layers[1:], layers[:-1])
    assert bench.run(first, last, card) == bench.expected
    assert second.get("replays") > TOKENS // 2


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_same_tokens_in_fewer_bits(second: SecondDevice, card: SecondCard, llama: Bench, format: Format) -> None:
    replies = []
    for captured in (False, True):
        placed = Placed(llama, card, whole(llama.spec, captured=captured), format)
        replies.append(list(placed.draw(llama.prompt, TOKENS)))
        placed.close(card)
    assert replies[0] == replies[1]
    assert second.get("replays") == TOKENS - FIRST_PASSES - 1  # except the first, from the prompt; one is a trial


def test_a_token_is_one_launch(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    took = launches(llama, card, whole(llama.spec))
    ordinary, replayed = took[FIRST_PASSES - 1], took[-1]
    assert replayed == 4  # the row, the position, the entire pass, and the logits' copy to the host
    assert ordinary > 30 * replayed


def test_a_run_of_layers_is_one_launch(second: SecondDevice, card: SecondCard, tmp_path: Path) -> None:
    """Two runs, with a divided layer between them: each takes a graph, and copies of its inputs."""
    bench = Bench("llama", tmp_path, num_hidden_layers=6)
    plans = (divided(bench.spec, 3, captured=captured) for captured in (False, True))
    ordinary, replayed = (launches(bench, card, plan)[-1] for plan in plans)
    assert replayed < ordinary - 5 * 40  # of about 46 launches in each of the five layers
    assert second.get("replays") == 2 * (TOKENS - FIRST_PASSES - 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("kind", PLANS)
def test_same_logits_for_several_rows(
    second: SecondDevice, card: SecondCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kv: KvFormat,
    kind: str,
) -> None:  # fmt: skip
    """As drafts are verified: some of the rows are taken back each time. Windows move within short buffers."""
    monkeypatch.setattr("core.layers.kv_layers.SLIDING_SLACK", 16)
    bench, counts, seen = Bench(family, tmp_path), (1, 3, 8), []
    prompt = (bench.prompt + bench.expected)[:60]
    for captured in (False, True):
        plan = PLANS[kind](bench.spec, captured)
        placed, found = Placed(bench, card, replace(plan, kv=kv)), list[Tensor]()
        placed.model.forward(prompt, placed.cache)
        for turn in range(10):
            for count in counts:
                ids = [3 + (7 * turn + 11 * one) % 190 for one in range(count)]
                found.append(placed.model.forward(ids, placed.cache, keep=count))
                placed.cache.rewind(len(placed.cache.tokens) - count // 2)
        seen.append(torch.cat(found))
        placed.close(card)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-3)
    assert second.get("replays") > GRAPHS[kind] * len(counts) * 3


def test_what_a_replay_saves_is_measured(
    second: SecondDevice, card: SecondCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.hardware.call_overhead.CALLS", 5)
    assert 0 <= replay_saves(card) <= 1
    assert second.get("replays") == 5
    assert replay_saves(SimulatedAccelerator(parse_simulation("vram=16MiB,link=2GB/s"))) == 0


def test_what_was_said_can_be_taken_back(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """Another question after half of a reply, and then the first again: the position is only a number."""
    placed = Placed(llama, card, whole(llama.spec))
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    replays = second.get("replays")
    edited = [*llama.prompt[:20], *reversed(llama.prompt[20:])]
    plain = Placed(llama, card, whole(llama.spec, captured=False))
    assert list(placed.draw(edited, 12)) == list(plain.draw(edited, 12))
    again = [*llama.prompt, *llama.expected[:7]]
    assert list(placed.draw(again, 12)) == llama.expected[7:19]
    assert second.get("replays") == replays + 22  # all except those from prompts
    plain.close(card)
    placed.close(card)


def test_passes_of_several_tokens_come_between(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """As in verification of drafts: each kind of pass sees what the other has written."""
    placed = Placed(llama, card, whole(llama.spec))
    ids = [*llama.prompt, *llama.expected]
    placed.model.forward(ids[:40], placed.cache)
    found, place = [], 40
    for count in (1, 1, 1, 1, 1, 1, 3, 1, 1, 4, 1, 2, 1):
        logits = placed.model.forward(ids[place : place + count], placed.cache, keep=count)
        found += logits.argmax(-1).tolist()
        place += count
    assert found == llama.expected[1 : 1 + len(found)]
    assert second.get("replays") == 10 - FIRST_PASSES, "of the passes over one token"
    placed.close(card)


@pytest.mark.parametrize("passes", [0, 1], ids=["before", "while"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_card_without_room_for_it_goes_on_without(
    second: SecondDevice, card: SecondCard, llama: Bench, passes: int, after: int
) -> None:
    """The card is full while the work runs before the capture, or during the capture. The layers are tried later."""
    placed, drawn, passed = Placed(llama, card, whole(llama.spec)), list[int](), list[int]()

    def fill_up(*_: object) -> None:
        if len(drawn) == FIRST_PASSES + 1:
            passed.append(len(passed))
            if passed[-1] == 1 + passes:
                second.set(full_after=after)
                second.set(full_times=1)

    hook = placed.model.module.model.layers[0].register_forward_pre_hook(fill_up)
    for token in placed.draw(llama.prompt, TOKENS):
        drawn.append(token)
    hook.remove()
    assert len(passed) == passes + 2, "the ordinary pass, and those that came so far"
    assert drawn == llama.expected
    assert second.get("replays") == TOKENS - 2 * (FIRST_PASSES + 1)  # of the layers, after as many passes again
    list(placed.placement.apply(whole(llama.spec)))
    replays = second.get("replays")
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    assert second.get("replays") == replays + TOKENS - FIRST_PASSES
    placed.close(card)


def test_a_change_of_plan_drops_what_was_captured(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """Half of the weights leave the card and return at other addresses, so that a pass must be captured anew."""
    placed, found, used = Placed(llama, card, whole(llama.spec)), list[int](), list[int]()
    divided = [(Rows(linear.rows // 2, 0, linear.rows - linear.rows // 2),) * 4 for linear in llama.spec.linears]
    changes = {16: plan_of(llama.spec, divided, True, Ring()), 20: whole(llama.spec)}
    for token in placed.draw(llama.prompt, TOKENS):
        found.append(token)
        used.append(card.memory().used)
        if len(found) in changes:
            list(placed.placement.apply(changes[len(found)]))
    assert found == llama.expected
    assert second.get("replays") == (16 - FIRST_PASSES - 1) + (TOKENS - 20 - FIRST_PASSES)
    assert used[16] < used[FIRST_PASSES] < used[15]
    placed.close(card)


def test_runs_of_layers_end_with_their_plan(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """Other layers are divided for a while, and then the first again, whose rows return at other addresses."""
    placed, found, used = Placed(llama, card, divided(llama.spec, 0)), list[int](), list[int]()
    changes = {14: divided(llama.spec, 1, 2), 18: divided(llama.spec, 0)}
    for token in placed.draw(llama.prompt, TOKENS):
        found.append(token)
        used.append(second.get("replays"))
        if len(found) in changes:
            list(placed.placement.apply(changes[len(found)]))
    assert found == llama.expected
    first, before, after = used[13], used[17], used[-1]
    assert first == 14 - FIRST_PASSES - 1
    assert before == first
    assert after == first + TOKENS - 18 - FIRST_PASSES - 1
    placed.placement.close()
    assert not any("forward" in vars(layer) for layer in placed.model.module.model.layers)
    card.close()


@pytest.mark.parametrize("some", [False, True], ids=["whole", "divided"])
def test_what_was_captured_is_freed_before_weights_move(
    second: SecondDevice, card: SecondCard, llama: Bench, some: bool
) -> None:
    """Also while an error of a pass is handled, which refers to all that took part in it."""
    placed = Placed(llama, card, divided(llama.spec, 0) if some else whole(llama.spec))
    drawn = placed.draw(llama.prompt, TOKENS)
    found = [next(drawn) for _ in range(FIRST_PASSES + 4)]
    second.set(pin_limit=0)
    with pytest.raises(HeteGenError) as raised:
        next(drawn)
    second.set(pin_limit=ROOM)
    used, replays = card.memory().used, second.get("replays")
    placed.placement.captures.drop()
    assert card.memory().used < used
    assert not any("forward" in vars(layer) for layer in placed.model.module.model.layers)
    assert [*found, *placed.draw([*llama.prompt, *found], TOKENS - len(found))] == llama.expected
    assert second.get("replays") == replays > 0
    del raised
    placed.close(card)


def test_what_comes_between_layers_is_noticed(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """As long as layers are deferred nothing may change their rows; then they are observed anew."""
    placed = Placed(llama, card, divided(llama.spec, 0))
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    last = placed.model.module.model.layers[2]
    hook = last.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1, *inputs[1:]))
    with pytest.raises(ModelFailed):
        placed.model.forward(llama.expected[-1:], placed.cache)
    replays = second.get("replays")
    placed.cache.reset()
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    assert second.get("replays") == replays
    hook.remove()
    placed.close(card)


def test_observed_passes_replay_the_layers_only(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """A drafter that reads the last states needs the modules around the layers to be called."""
    plain, placed = (Placed(llama, card, whole(llama.spec, captured=captured)) for captured in (False, True))
    seen = []
    for one in (plain, placed):
        states = list[Tensor]()
        one.model.on_states = lambda _, found, states=states: states.append(found)
        assert list(one.draw(llama.prompt, TOKENS)) == llama.expected
        seen.append(torch.cat(states))
    torch.testing.assert_close(seen[1], seen[0])
    assert second.get("replays") == TOKENS - FIRST_PASSES - 1
    plain.placement.close()
    placed.close(card)


def test_a_cache_that_moved_is_not_the_one_that_was_captured(
    second: SecondDevice, card: SecondCard, llama: Bench
) -> None:
    placed, found = Placed(llama, card, whole(llama.spec)), list[int]()
    for token in placed.draw(llama.prompt, TOKENS):
        found.append(token)
        if len(found) == 16:
            placed.cache.move({})
            placed.cache.move(placed.placement.kv_places(placed.placement.plan))
            replays = second.get("replays")
    assert found == llama.expected
    assert second.get("replays") == replays + TOKENS - 16  # including the trial
    placed.cache.rewind(60)
    ids = [*llama.prompt, *llama.expected]
    assert placed.model.forward(ids[60:64], placed.cache, keep=4).argmax(-1).tolist() == ids[61:65]
    placed.close(card)


def test_what_is_forgotten_too_late_is_noticed(
    second: SecondDevice, card: SecondCard, llama: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device knows the owner of memory, so reads of freed weights by captured work are detected."""
    placed = Placed(llama, card, whole(llama.spec))
    drawn = placed.draw(llama.prompt, TOKENS)
    for _ in range(16):
        next(drawn)
    moved = next(part for part in placed.model.module.modules() if getattr(part, "resident", None) is not None)
    moved.resident = None
    with pytest.raises(Exception, match="failed"):
        next(drawn)
    assert "given back" in second.violation()
    placed.close(card)
    second.plug(True)


def test_a_pass_that_finds_something_else_is_not_used(
    second: SecondDevice, card: SecondCard, llama: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that counts tokens by itself would count the whole stretch: its layers alone are replayed."""
    placed = Placed(llama, card, whole(llama.spec))
    rotary = placed.model.module.model.rotary_emb
    own: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = rotary.forward

    def counting(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        first = placed.cache.get_seq_length()
        return own(x, torch.arange(first, first + x.shape[1], device=x.device).unsqueeze(0))

    monkeypatch.setattr(rotary, "forward", counting)
    drawn = placed.draw(llama.prompt, TOKENS)
    found = [next(drawn) for _ in range(FIRST_PASSES + 2)]
    assert second.get("replays") == 1
    assert found + list(drawn) == llama.expected  # the layers get their angles from outside, so that they are captured
    assert second.get("replays") > TOKENS // 2
    placed.close(card)


@pytest.mark.parametrize("known", [True, False])
def test_layers_that_lend_their_states_are_not_captured(
    second: SecondDevice, card: SecondCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Those before them are, but none of a run in which that only shows when they are called."""
    if not known:
        monkeypatch.setattr("core.model.captures.lends", lambda _: False)
    bench = Bench("gemma4_text", tmp_path, **LENDING)
    plan = with_graphs(whole(bench.spec, captured=False), bench.spec)
    assert plan.captured == (0, 1, 2, 3)
    assert bench.run(plan, plan, card) == bench.expected
    assert (second.get("replays") > TOKENS // 2) == known


def test_layers_that_a_pass_goes_through_several_times(
    second: SecondDevice, card: SecondCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have more KV caches than modules: only the pass as a whole can be captured."""
    monkeypatch.setitem(FAMILIES, "hrm_text", FAMILIES["llama"] | {"H_cycles": 2, "L_cycles": 1})
    bench = Bench("hrm_text", tmp_path)
    assert bench.run(with_graphs(whole(bench.spec), bench.spec), divided(bench.spec, 0), card) == bench.expected


def test_a_device_that_captures_nothing_is_asked_once(
    card: SecondCard, llama: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(card, "captured", lambda work, *_: asked.append(work))
    placed = Placed(llama, card, whole(llama.spec))
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    assert len(asked) == 2  # for the whole model, and for its layers
    placed.close(card)


def text_of(events: list[Event]) -> str:
    assert isinstance(events[-1], Finished), events[-1]
    return "".join(event.text for event in events if isinstance(event, Piece))


def test_a_card_that_was_lost_captures_anew_when_it_is_back(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(second, monkeypatch)
    engine, events = Engine(), list[Event]()
    request = Request((Message("user", "Who is the fox?"),), Sampling(temperature=0, max_new_tokens=24))
    list(engine.load(chat_model(tmp_path), LoadOptions(context=512, simulate_gpu="vram=60MiB,link=2GB/s,gpu=100GB/s")))
    assert engine.loaded is not None
    assert engine.loaded.plan.captured
    said = text_of(list(engine.chat(request)))
    assert (replays := second.get("replays")) > 10
    for event in engine.chat(request):
        events.append(event)
        if sum(isinstance(one, Piece) for one in events) == 8:
            second.set(lost=1)
    assert text_of(events) == said
    assert engine.loaded.plan.gpu == -1
    list(engine.replan(None, None))
    assert text_of(list(engine.chat(request))) == said
    assert second.get("replays") > replays + 10
    engine.close()
