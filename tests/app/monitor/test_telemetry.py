from __future__ import annotations

import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest

from app.monitor.telemetry import MachineProbe, Sample, Sampler
from app.monitor.telemetry_nvml import GpuSample, Nvml
from tests.app.timing import best


@pytest.fixture
def machine() -> MachineProbe:
    return MachineProbe()


@pytest.mark.timed
def test_memory_agrees_with_psutil(machine: MachineProbe) -> None:
    def difference() -> float:
        sample, memory = machine.read(), psutil.virtual_memory()
        assert sample.ram_total == memory.total
        assert sample.ram_used == memory.total - (sample.ram_available or 0)
        own = abs((sample.own_ram or 0) - psutil.Process().memory_info().rss)
        return max(own, abs((sample.ram_available or 0) - memory.available))

    # Memory that other programs take or free between the two readings is no disagreement.
    assert best(difference, 50e6) < 50e6


@pytest.mark.timed
def test_own_memory_grows_by_what_is_taken(machine: MachineProbe) -> None:
    def difference() -> float:
        before = machine.read().own_ram or 0
        held = bytearray(b"x" * 200_000_000)
        return abs((machine.read().own_ram or 0) - before - len(held))

    assert best(difference, 20e6) < 20e6


@pytest.mark.timed
def test_cpu_percentages_agree_with_the_times_that_psutil_counts(machine: MachineProbe) -> None:
    # Percentage points; the processor's counters tick in hundredths of a second.
    assert best(lambda: cpu_disagreement(machine), 12) < 12
    assert machine.read().others_cpu_percent is not None


def cpu_disagreement(machine: MachineProbe) -> float:
    machine.read()
    own, whole, start = psutil.Process().cpu_times(), psutil.cpu_times(), time.monotonic()
    while time.monotonic() - start < 0.6:
        pass
    sample, seconds = machine.read(), time.monotonic() - start
    spent = psutil.Process().cpu_times()
    used = spent.user + spent.system - own.user - own.system
    idle = psutil.cpu_times().idle - whole.idle
    cores = psutil.cpu_count() or 1
    own_percent, percent = 100 * used / seconds / cores, 100 - 100 * idle / seconds / cores
    return max(abs((sample.own_cpu_percent or 0) - own_percent), abs((sample.cpu_percent or 0) - percent))


def test_what_needs_two_readings_is_unknown_at_first(machine: MachineProbe) -> None:
    first = machine.read()
    assert (first.cpu_percent, first.own_cpu_percent, first.others_cpu_percent) == (None, None, None)
    assert first.disk_read_bytes_s is None


def test_unknown_is_none_and_never_zero() -> None:
    blank = Sample(0.0, gpus=(GpuSample(0, "card"),))
    assert blank.ram_used is None
    assert blank.others_cpu_percent is None
    assert blank.gpus[0].vram_others is None


def test_without_the_library_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml = Nvml(1)
    assert nvml.read(0.0) == ()
    assert nvml.read(1e9) == ()
    nvml.close()


class Refused(Exception):
    """The error of the fake driver."""


def driver(**answers: object) -> SimpleNamespace:
    """Return a driver that knows one card and only the given answers; everything else is "not supported"."""

    def refuse(*_: object) -> object:
        raise Refused

    names = [
        "Init", "Shutdown", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetUtilizationRates",
        "DeviceGetMemoryInfo", "DeviceGetPowerUsage", "DeviceGetEnforcedPowerLimit", "DeviceGetName",
        "DeviceGetPciInfo", "DeviceGetTemperature", "DeviceGetComputeRunningProcesses",
        "DeviceGetGraphicsRunningProcesses", "DeviceGetFieldValues", "DeviceGetPcieThroughput",
        "DeviceGetCurrentClocksEventReasons",
    ]  # fmt: skip
    functions = {f"nvml{name}": refuse for name in names}
    known = {"Init": None, "Shutdown": None, "DeviceGetCount": 1, "DeviceGetHandleByIndex": "handle", **answers}
    for name, answer in known.items():
        functions[f"nvml{name}"] = answer if callable(answer) else lambda *_, answer=answer: answer
    return SimpleNamespace(
        **functions, NVMLError=Refused, NVML_SUCCESS=0, NVML_TEMPERATURE_GPU=0, NVML_FI_DEV_PCIE_COUNT_RX_BYTES=198,
        NVML_FI_DEV_PCIE_COUNT_TX_BYTES=197, NVML_PCIE_UTIL_RX_BYTES=1, NVML_PCIE_UTIL_TX_BYTES=0,
        nvmlClocksThrottleReasonHwThermalSlowdown=0x40, nvmlClocksThrottleReasonSwThermalSlowdown=0x20,
        nvmlClocksEventReasonSwPowerCap=0x4,
    )  # fmt: skip


def test_the_double_speaks_of_nothing_that_the_real_library_lacks() -> None:
    import pynvml

    missing = [name for name in vars(driver()) if not hasattr(pynvml, name)]
    assert missing == []


def test_a_card_that_tells_nothing_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    assert Nvml(1).read(0.0) == (GpuSample(0, "GPU 0"),)


def test_units_and_shares_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = SimpleNamespace(pid=1, usedGpuMemory=3 << 30), SimpleNamespace(pid=2, usedGpuMemory=1 << 30)
    counts = iter([(1_000, 50), (3_001_000, 1_050)])

    def counters(*_: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=count)) for count in next(counts)]

    double = driver(
        DeviceGetName="Card", DeviceGetUtilizationRates=SimpleNamespace(gpu=42), DeviceGetPowerUsage=123_400,
        DeviceGetMemoryInfo=SimpleNamespace(total=8 << 30, used=5 << 30), DeviceGetTemperature=71,
        DeviceGetComputeRunningProcesses=[own], DeviceGetGraphicsRunningProcesses=[other],
        DeviceGetFieldValues=counters, DeviceGetCurrentClocksEventReasons=0x24,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", double)
    monkeypatch.setattr("app.monitor.telemetry_nvml.program_of", {2: "game"}.get)
    nvml = Nvml(1)
    nvml.read(10.0)
    (card,) = nvml.read(12.0)
    assert (card.busy_percent, card.power_w, card.temperature_c, card.power_limit_w) == (42.0, 123.4, 71, None)
    assert (card.vram_total, card.vram_used, card.vram_own, card.vram_others) == (8 << 30, 5 << 30, 3 << 30, 2 << 30)
    assert card.others == (("game", 1 << 30),)
    assert (card.link_in_bytes_s, card.link_out_bytes_s) == (1_500_000, 500)
    assert (card.slowed_by_heat, card.slowed_by_power) == (True, True)


def test_foreign_process_numbers_of_a_container_are_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = SimpleNamespace(pid=2, usedGpuMemory=1 << 30)
    monkeypatch.setitem(sys.modules, "pynvml", driver(DeviceGetComputeRunningProcesses=[stranger]))
    monkeypatch.setattr("app.monitor.telemetry_nvml.program_of", {}.get)
    (card,) = Nvml(1).read(0.0)
    assert (card.vram_own, card.others) == (None, ())


def test_a_driver_that_goes_away_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    double = driver()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    nvml = Nvml(1)
    assert len(nvml.read(0.0)) == 1

    def lost() -> int:
        raise Refused

    works, double.nvmlDeviceGetCount = double.nvmlDeviceGetCount, lost
    assert nvml.read(1.0) == ()
    double.nvmlDeviceGetCount = works
    assert nvml.read(2.0) == ()
    assert len(nvml.read(32.0)) == 1


def test_a_missing_card_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_driver() -> None:
        raise Refused

    double = driver()
    double.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", double)
    nvml = Nvml(1)
    with caplog.at_level("INFO"):
        assert [nvml.read(float(at)) for at in (0, 60, 120)] == [(), (), ()]
    assert len(caplog.records) == 1


def test_the_sampler_keeps_its_pace_and_ends() -> None:
    samples: list[Sample] = []
    enough = threading.Event()

    def heard(sample: Sample) -> None:
        samples.append(sample)
        if len(samples) == 3:
            enough.set()

    sampler = Sampler(heard, interval_s=0.01)
    sampler.start()
    sampler.start()
    assert enough.wait(60)
    sampler.stop()
    sampler.stop()
    assert samples[0].cpu_percent is not None
    gaps = [later.at - earlier.at for earlier, later in pairwise(samples)]
    assert min(gaps) >= 0.45, "at most twice a second"
    count = len(samples)
    time.sleep(0.6)
    assert len(samples) == count
