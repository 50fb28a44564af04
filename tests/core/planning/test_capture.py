"""Which plans allow a card to replay a decode pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.planning.calibration import fully_resident
from core.planning.capture import is_whole, runs_of
from core.planning.fixed_cost import CHOICE_SHARE, GAP_SHARE, fixed_costs
from core.planning.machine_rates import MachineRates
from core.planning.planner import explain, place
from core.spec import DECODE, Budget, Hardware, ModelSpec, Profile
from core.units import GIB
from tests.core.machines import DESKTOP, model, without_heads

ABLE = replace(DESKTOP, gpus=tuple(replace(gpu, graphs=True) for gpu in DESKTOP.gpus))
SAVING = replace(ABLE, gpus=tuple(replace(gpu, replay_saves=0.75) for gpu in ABLE.gpus))
SMALL = Budget(format="int4", context=2048)


def test_a_model_that_lies_on_the_card_is_captured() -> None:
    plan = place(model("llama-3.2-1b"), ABLE, SMALL)
    assert plan.captured == tuple(range(16))
    assert is_whole(plan)


@pytest.mark.parametrize(("name", "vram"), [("llama-3.2-1b", GIB // 2), ("llama-3.1-8b", 4 * GIB)])
def test_so_are_the_layers_of_others_that_do(name: str, vram: int) -> None:
    spec = without_heads(model(name))
    plan = place(spec, ABLE, replace(SMALL, vram=vram))
    assert 0 < len(plan.captured) - len(plan.gaps) < spec.layers
    assert not is_whole(plan)
    for linear, one in zip(spec.linears, plan.linears, strict=True):
        if linear.layer in plan.captured and linear.part not in plan.gaps:
            assert one.resident == one.rows
            assert plan.kv_devices[linear.layer] == 0


@pytest.mark.parametrize("name", ["llama-3.1-8b", "olmoe-1b-7b"])
def test_so_is_attention_where_only_the_rest_is_divided(name: str) -> None:
    """The usual plan between some layers and all: attention on the card, MLPs on both sides, experts by use."""
    spec = without_heads(model(name))
    plain, known = (place(spec, machine, replace(SMALL, vram=2 * GIB)) for machine in (ABLE, SAVING))
    assert known.captured == tuple(range(spec.layers))
    assert known.gaps == tuple(sorted(f"model.layers.{layer}.mlp" for layer in range(spec.layers)))
    assert not is_whole(known)
    assert known.decode.likely > 1.04 * plain.decode.likely
    (line,) = (line for line in explain(known, spec, SAVING) if "replays" in line)
    assert f"in {spec.layers} of {spec.layers} layers" in line


def test_experts_are_gaps_wherever_they_are() -> None:
    spec = model("olmoe-1b-7b")
    plan = place(spec, ABLE, SMALL)
    assert fully_resident(plan)
    assert len(plan.gaps) == len(plan.captured) == spec.layers
    assert not is_whole(plan)


def test_what_a_replay_saves_is_in_the_price() -> None:
    known, plain = (place(model("llama-3.2-1b"), machine, SMALL) for machine in (SAVING, ABLE))
    assert known.linears == plain.linears
    gpu = ABLE.gpus[0]
    launches = sum(linear.name != "lm_head" for linear in plain.linears)
    saved_s = 0.75 * (16 * gpu.layer_s + launches * gpu.launch_s)
    assert known.decode_times.total == pytest.approx(plain.decode_times.total - saved_s)
    assert known.prefill_times == plain.prefill_times
    capped = replace(model("llama-3.2-1b"), widens_states=True)
    known, plain = (place(capped, machine, SMALL) for machine in (SAVING, ABLE))
    assert known.decode == plain.decode


def test_experts_in_a_gap_cost_what_no_replay_saves() -> None:
    """Routers are launched, and what they chose is waited for, whatever is replayed around them."""
    spec, (gpu,) = model("olmoe-1b-7b"), SAVING.gpus
    known, plain = (place(spec, machine, SMALL) for machine in (SAVING, ABLE))
    attention = 0.75 * ((1 - GAP_SHARE) * gpu.layer_s + 4 * gpu.launch_s)
    saved_s = spec.layers * (attention - 2 * gpu.launch_s)
    assert known.decode_times.total == pytest.approx(plain.decode_times.total - saved_s)
    dense = replace(spec, linears=tuple(replace(one, experts=1, active=1) for one in spec.linears))
    between = [between_s(one, ()) for one in (spec, dense)]
    choice_s = CHOICE_SHARE * gpu.layer_s + gpu.link.sync_s
    assert between[0] - between[1] == pytest.approx(spec.layers * choice_s)
    on_cpu = [between_s(one, range(6, spec.layers)) for one in (spec, dense)]
    assert on_cpu[0] - on_cpu[1] == pytest.approx(6 * choice_s)


def between_s(spec: ModelSpec, host_layers: Sequence[int]) -> float:
    """Return the seconds of a token besides linears and attention, if the CPU computes these layers."""
    machine = MachineRates(SAVING, SAVING.gpus[0], Profile(), threads=4)
    return fixed_costs(spec, machine, [0] * spec.layers, 1024, host_layers).overhead[DECODE]


@pytest.mark.parametrize("tenths", [6, 7, 8])
def test_gaps_make_no_token_slower(tenths: int) -> None:
    """Reading a prompt may be faster with another division, but not at the expense of every token."""
    spec, budget = without_heads(model("llama-3.2-1b")), replace(SMALL, vram=tenths * GIB // 10)
    alone = replace(spec, linears=tuple(replace(one, name=one.name.replace(".mlp.", ".")) for one in spec.linears))
    with_gaps, without = (place(one, SAVING, budget) for one in (spec, alone))
    assert not without.gaps
    assert with_gaps.decode.likely >= without.decode.likely


def test_more_layers_are_kept_whole_where_replays_save_time() -> None:
    spec, budget = without_heads(model("llama-3.2-1b")), replace(SMALL, vram=8 * GIB // 10)
    known, plain = (place(spec, machine, budget) for machine in (SAVING, ABLE))
    assert known.decode.likely > plain.decode.likely
    assert len(known.captured) - len(known.gaps) > len(plain.captured) - len(plain.gaps)


def test_the_memory_of_graphs_is_counted() -> None:
    able, other = (place(model("llama-3.1-8b"), machine, SMALL).memory[-1] for machine in (ABLE, DESKTOP))
    assert 0 < able.workspace - other.workspace < 56 << 20
    opt, capped = model("opt-6.7b"), replace(model("opt-6.7b"), widens_states=True)
    counted, none = (place(spec, ABLE, SMALL).memory[-1].workspace for spec in (opt, capped))
    assert none == place(opt, DESKTOP, SMALL).memory[-1].workspace < counted


def test_runs_are_as_long_as_possible_and_few() -> None:
    assert runs_of((0, 1, 4, 5, 6, 9)) == [(4, 5, 6), (0, 1), (9,)]
    assert len(runs_of(range(0, 40, 2))) == 4
    assert runs_of(()) == []


@pytest.mark.parametrize(
    ("name", "machine", "budget"),
    [
        ("llama-3.2-1b", DESKTOP, SMALL),
        ("opt-6.7b", ABLE, replace(SMALL, vram=2 * GIB)),
    ],
    ids=["a card that cannot", "linears of layers"],
)
def test_others_are_not(name: str, machine: Hardware, budget: Budget) -> None:
    assert not place(model(name), machine, budget).captured


def test_nor_is_what_is_only_compared_with() -> None:
    assert not place(model("llama-3.2-1b"), ABLE, SMALL, "serial").captured
