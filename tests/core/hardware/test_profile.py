import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import Simulation
from core.accelerators.trial import Trial
from core.errors import BadRequest
from core.hardware import benchmark, call_overhead
from core.hardware import profile as module
from core.hardware.benchmark import measure_beside
from core.hardware.cpu_info import cpu_info, on_battery, ram
from core.hardware.doctor import findings, software
from core.hardware.machine import open_machine
from core.hardware.profile import PROFILE_FILE, forget, measured_machine, refreshed, rescaled
from core.hardware.workloads import LinkLoad
from core.kernels.autotune import KernelTable
from core.planning.planner import place
from core.spec import Budget, Hardware
from core.units import GIB, MIB
from tests.core.machines import model
from tests.core.second_device import SecondCard, SecondDevice

SIMULATED = "vram=256MiB,link=2GB/s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _never_too_busy() -> Iterator[None]:
    """Keep measurements although other tests run at the same time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOO_BUSY", 2.0)
        yield


@pytest.fixture(scope="module")
def machine(folder: Path) -> Hardware:
    """Provide this machine with a simulated card, measured once for all tests."""
    return measured_machine(folder, SIMULATED, threads=1)[0]


def test_the_processor_is_described() -> None:
    info, (total, free) = cpu_info(), ram()
    assert info.name
    assert 1 <= info.physical_cores <= info.logical_cores
    assert 0 < free <= total
    assert on_battery() in (True, False)


def test_rates_are_plausible(machine: Hardware) -> None:
    cpu = machine.cpu
    assert cpu.threads == 1
    assert 1e8 < cpu.read_bytes_s < 1e12
    rates = {rate.storage: rate for rate in cpu.rates}
    assert "bf16" in rates
    for rate in cpu.rates:
        assert 1e6 < rate.bytes_s <= cpu.read_bytes_s
        assert min(rate.flops) > 1e6
    assert 0 < cpu.call_s < 0.01
    assert 0 < cpu.layer_s < 0.1
    assert 0 < cpu.pass_s < 0.1
    assert 0 < cpu.state_s < 1e-6
    assert 1e6 < machine.disk_bytes_s < 1e12


@pytest.mark.skipif(sys.platform == "win32", reason="a thread's time is counted in steps of 16 ms there")
def test_a_layer_in_one_call_with_others_takes_a_fraction_of_what_python_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the thread's own time: on a busy machine most calls also wait for a core."""
    monkeypatch.setattr(call_overhead, "time", SimpleNamespace(perf_counter=time.thread_time))
    overheads = call_overhead.Overheads(lambda: None)
    assert 0 < overheads.run_s() < (overheads.layer_s() + 7 * overheads.call_s()) / 3


def test_without_our_library_it_takes_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_overhead, "instruction_sets", tuple)
    overheads = call_overhead.Overheads(lambda: None)
    monkeypatch.setattr(overheads, "call_s", lambda: 1.0)
    monkeypatch.setattr(overheads, "layer_s", lambda: 2.0)
    assert overheads.run_s() == 9.0


def test_a_simulated_card_is_measured_like_a_real_one(machine: Hardware) -> None:
    card = machine.gpus[0]
    assert card.simulated
    assert card.shares_cores
    assert "imulated" in card.name
    assert card.vram_total == card.vram_free == 256 << 20
    # Load may make any rate smaller, but none larger.
    assert 1e7 < card.link.h2d_pinned <= 2.2e9
    assert 1e7 < card.link.h2d_pageable <= 2.2e9
    assert card.link.staged > 1e7
    assert card.link.piece_s >= 0
    assert 0 < card.cpu_under_copy <= 1
    assert 0 < card.link_under_cpu <= 1
    assert card.rates == machine.cpu.rates


def test_no_rate_is_negative_where_a_thread_was_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class HeldUp(LinkLoad):
        def seconds(self) -> float:
            """Return much more for small pieces."""
            return super().seconds() * (100 if self.chunks > benchmark.COPY_BYTES // benchmark.SLOT_BYTES else 1)

    monkeypatch.setattr(benchmark, "LinkLoad", HeldUp)
    device = SimulatedAccelerator(Simulation(256 * MIB, 2e9))
    assert 0 < benchmark.measure_gpu(device, benchmark.measure_cpu()).link.staged < 1e12
    device.close()


def test_a_rate_of_its_own_makes_the_card_a_device_beside_the_cores(folder: Path) -> None:
    card = measured_machine(folder, f"{SIMULATED},gpu=100GB/s", threads=1)[0].gpus[0]
    assert not card.shares_cores
    assert card.bytes_s == 100e9


def test_a_card_that_fails_is_left_out_and_told_of(tmp_path: Path) -> None:
    hardware = measured_machine(tmp_path, "vram=1MiB,link=2GB/s", threads=1)[0]
    assert hardware.gpus == ()
    assert "too little free memory" in hardware.unusable[0]
    assert any("is not used" in one.what for one in findings(hardware, software()))


def test_what_the_trial_of_a_card_with_shared_memory_found_is_measured_and_kept(
    tmp_path: Path, second: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    second.set(unified=1)
    monkeypatch.setattr("core.hardware.benchmark.STORAGES", ("bf16",))
    # In the other process that tries cards, there is no such device.
    monkeypatch.setattr("core.accelerators.trial.tried", lambda index: Trial("", unified=True, in_place=True))
    monkeypatch.setattr("core.hardware.benchmark.measure_beside", lambda *_: (0.5, 0.25))
    card = measured_machine(tmp_path, threads=1)[0].gpus[0]
    assert (card.unified, card.in_place, card.cpu_beside, card.gpu_beside) == (True, True, 0.5, 0.25)
    monkeypatch.setattr(module, "measured_profile", None)  # would fail if called
    assert replace(measured_machine(tmp_path, threads=1)[0].gpus[0], vram_free=card.vram_free) == card


def test_no_card_is_used_before_its_trial(
    tmp_path: Path, second: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or broken card would end this process, or raise an error where nobody expects one."""
    asked = list[object]()
    monkeypatch.setattr(torch.accelerator, "get_memory_info", asked.append)
    second.set(lost=1)
    monkeypatch.setattr("core.accelerators.trial.tried", lambda index: Trial("It is lost."))
    hardware = measured_machine(tmp_path, threads=1)[0]
    assert not asked, "it is asked within the driver's context"
    assert (hardware.gpus, hardware.unusable) == ((), ("It is lost.",))


def test_a_card_that_does_not_describe_itself_is_tried(
    tmp_path: Path, second: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: int) -> None:
        raise RuntimeError("CUDA-capable device is busy or unavailable")

    monkeypatch.setattr(torch.get_device_module("second"), "get_device_properties", fail)
    monkeypatch.setattr("core.accelerators.trial.tried", lambda index: Trial(f"It is number {index}."))
    assert measured_machine(tmp_path, threads=1)[0].unusable == ("It is number 0.",)


def test_how_card_and_processor_slow_each_other_down_is_measured(card: SecondCard) -> None:
    assert all(0.2 <= part <= 1 for part in measure_beside(card, KernelTable(1)))


def test_threads_are_left_as_they_were(folder: Path) -> None:
    before = torch.get_num_threads()
    measured_machine(folder, SIMULATED, threads=1)
    assert torch.get_num_threads() == before


def test_what_was_measured_is_remembered(folder: Path, machine: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measured_profile", None)  # would fail if called
    again = measured_machine(folder, SIMULATED, threads=1)[0]
    assert again.gpus == machine.gpus
    assert replace(again.cpu, ram_free=0) == replace(machine.cpu, ram_free=0)


def test_other_conditions_are_measured_anew(folder: Path, machine: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    known = next(iter(module.kept_profiles(folder).values()))
    monkeypatch.setattr(
        module, "measured_profile", lambda folder, cards, simulation, threads: asked.append(threads) or known
    )
    measured_machine(folder, "vram=256MiB,link=3GB/s", threads=1)
    monkeypatch.setattr(module, "driver_version", lambda: "another driver")
    measured_machine(folder, SIMULATED, threads=1)
    assert asked == [1, 1]


def test_a_busy_moment_is_measured_again_a_few_times(
    tmp_path: Path, folder: Path, machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(iter(module.kept_profiles(folder).values()))
    loads = [0.9, 0.5, 0.8, 0.1]
    monkeypatch.setattr(module, "TOO_BUSY", 0.2)
    monkeypatch.setattr(module, "measured_profile", lambda *_: replace(known, busy=loads.pop(0)))
    for _ in range(6):
        assert not measured_machine(tmp_path, SIMULATED, threads=1)[0].measured
    assert loads == [0.1]
    assert [profile.busy for profile in module.kept_profiles(tmp_path).values()] == [0.5]


def test_what_is_free_is_always_asked_anew(machine: Hardware) -> None:
    old = replace(machine, cpu=replace(machine.cpu, ram_free=7))
    assert refreshed(old).cpu.ram_free > GIB // 8


def test_slower_cores_slow_what_they_compute_and_nothing_else(machine: Hardware) -> None:
    slow = rescaled(machine, {"bf16": 0.5})
    assert slow.cpu.rates[0].bytes_s == pytest.approx(machine.cpu.rates[0].bytes_s / 2)
    assert slow.cpu.rates[0].flops[3] == pytest.approx(machine.cpu.rates[0].flops[3] / 2)
    for name in ("call_s", "layer_s", "run_s", "pass_s", "state_s", "score_s"):
        assert getattr(slow.cpu, name) == pytest.approx(2 * getattr(machine.cpu, name))
    simulated, real = machine.gpus[0], replace(machine.gpus[0], shares_cores=False)
    assert slow.gpus[0].bytes_s == pytest.approx(simulated.bytes_s / 2)
    assert slow.gpus[0].link == simulated.link
    assert rescaled(replace(machine, gpus=(real,)), {"bf16": 0.5}).gpus == (real,)
    assert rescaled(machine, {"bf16": 1.02}) == machine, "that is noise"
    assert rescaled(machine, {"bf16": 1e-3}).cpu.rates[0].bytes_s > 0.2 * machine.cpu.rates[0].bytes_s, (
        "that cannot be believed"
    )


def test_each_format_goes_at_its_own_pace(machine: Hardware) -> None:
    before = {rate.storage: rate.bytes_s for rate in machine.cpu.rates}
    slow = rescaled(machine, {"bf16": 0.5, "int4": 0.9})
    after = {rate.storage: rate.bytes_s for rate in slow.cpu.rates}
    assert {name: round(after[name] / before[name], 3) for name in ("bf16", "int8", "int4")} == {
        "bf16": 0.5, "int8": 0.5, "int4": 0.9,
    }  # fmt: skip


def test_the_present_pace_is_asked_of_the_kernels_that_were_measured(folder: Path) -> None:
    opened = open_machine(folder, SIMULATED, threads=1)
    threads, before = torch.get_num_threads(), opened.hardware
    opened.hardware = rescaled(before, {"bf16": 0.5})
    opened.keep_pace()
    assert opened.hardware.cpu.rates[0].bytes_s > 0
    assert opened.hardware.gpus[0].link == before.gpus[0].link
    assert torch.get_num_threads() == threads


def test_the_kernels_timings_come_along(folder: Path, machine: Hardware) -> None:
    hardware, table = measured_machine(folder, SIMULATED, threads=1)
    assert (hardware.cpu, table.threads) == (replace(machine.cpu, ram_free=hardware.cpu.ram_free), 1)
    assert len(table.names("bf16", 1000, 1000)) == 4


def test_the_timings_are_those_of_this_machine_whatever_else_is_kept(folder: Path, machine: Hardware) -> None:
    """As after an update of torch, or in a home directory shared by several computers."""
    _, table = measured_machine(folder, SIMULATED, threads=1)
    file = folder / PROFILE_FILE
    kept = json.loads(file.read_text("utf-8"))
    profile = next(iter(kept.values()))
    other = json.loads(json.dumps(profile))
    other["cpu"]["table"] = KernelTable(1).to_json()
    file.write_text(json.dumps({"of another machine": other, **kept}), encoding="utf-8")
    assert measured_machine(folder, SIMULATED, threads=1)[1] == table != KernelTable(1)
    file.write_text(json.dumps(kept), encoding="utf-8")


def test_two_that_ask_at_once_do_not_measure_at_once(
    folder: Path, machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, inside, most = module.load_or_measure, [0], [0]

    def slow(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return profile(*arguments)

    monkeypatch.setattr(module, "load_or_measure", slow)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: measured_machine(folder, SIMULATED, threads=1), range(3)))
    assert most == [1]
    assert len({table.threads for _, table in found}) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {}}', '{"key": {"cpu": {}}}'])
def test_a_damaged_profile_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / PROFILE_FILE).write_text(content, encoding="utf-8")
    assert module.kept_profiles(tmp_path) == {}


def test_forgetting_is_for_good(tmp_path: Path) -> None:
    (tmp_path / PROFILE_FILE).write_text(json.dumps({}), encoding="utf-8")
    forget(tmp_path)
    forget(tmp_path)
    assert not (tmp_path / PROFILE_FILE).exists()


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        measured_machine(tmp_path, "a big one")


def test_a_measured_machine_can_be_planned_for(machine: Hardware) -> None:
    plan = place(model("qwen2.5-0.5b"), machine, Budget(format="bf16", context=512))
    assert plan.confidence == "derived"
    assert plan.gpu == 0
    assert plan.memory[-1].used <= 256 << 20
