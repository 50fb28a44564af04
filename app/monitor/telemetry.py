"""Load of this computer: CPU, memory, disk, battery, graphics cards. No Qt; sampled in a thread at most at 2 Hz.

Whatever cannot be read is None, never 0: an unknown figure must not look like an idle machine.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from app.monitor.telemetry_nvml import GpuSample, Nvml

log = logging.getLogger(__name__)

LEAST_INTERVAL_S = 0.5
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal")


@dataclass(frozen=True)
class Sample:
    """One reading. Percentages are of the whole machine, 0-100; sizes in bytes; rates since the previous sample."""

    at: float
    """time.monotonic() of the reading."""
    cpu_percent: float | None = None
    own_cpu_percent: float | None = None
    cpu_temperature_c: float | None = None
    ram_total: int | None = None
    ram_available: int | None = None
    own_ram: int | None = None
    """Resident set of this process. Includes pages of memory-mapped weights, which the system may drop."""
    disk_read_bytes_s: float | None = None
    on_battery: bool | None = None
    gpus: tuple[GpuSample, ...] = ()

    @property
    def ram_used(self) -> int | None:
        """Total less available memory."""
        if self.ram_total is None or self.ram_available is None:
            return None
        return self.ram_total - self.ram_available

    @property
    def others_cpu_percent(self) -> float | None:
        """CPU use of other programs."""
        if self.cpu_percent is None or self.own_cpu_percent is None:
            return None
        return max(0.0, self.cpu_percent - self.own_cpu_percent)


class MachineProbe:
    """Reads all figures once per call, from one thread at a time. Figures that need two readings start as None."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._nvml = Nvml(os.getpid())
        self._cores = psutil.cpu_count() or 1
        self._read_before: tuple[float, int] | None = None
        self._began = False

    def read(self) -> Sample:
        """Take a sample; rates refer to the time since the previous one."""
        now = time.monotonic()
        memory = psutil.virtual_memory()
        cpu, own_cpu = psutil.cpu_percent(), self._process.cpu_percent() / self._cores
        began, self._began = self._began, True
        battery = _battery()
        return Sample(
            at=now,
            cpu_percent=cpu if began else None,
            own_cpu_percent=own_cpu if began else None,
            cpu_temperature_c=_cpu_temperature(),
            ram_total=memory.total,
            ram_available=memory.available,
            own_ram=self._process.memory_info().rss,
            disk_read_bytes_s=self._disk_rate(now),
            on_battery=None if battery is None or battery.power_plugged is None else not battery.power_plugged,
            gpus=self._nvml.read(now),
        )

    def close(self) -> None:
        self._nvml.close()

    def _disk_rate(self, now: float) -> float | None:
        counters = _disk_counters()
        if counters is None:
            return None
        before, self._read_before = self._read_before, (now, counters)
        if before is None or now <= before[0]:
            return None
        return max(0, counters - before[1]) / (now - before[0])


class Sampler:
    """Calls `heard` with a Sample every `interval_s` (at least half a second) from its own thread."""

    def __init__(self, heard: Callable[[Sample], None], interval_s: float = 1.0) -> None:
        self._heard = heard
        self._interval = max(LEAST_INTERVAL_S, interval_s)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; no effect if it runs."""
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop and join the thread; it may be started again."""
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        machine = MachineProbe()
        try:
            machine.read()
            # Rates and CPU percentages need an earlier reading; a short first pause shows figures soon.
            pause = min(0.25, self._interval)
            while not self._end.wait(pause):
                pause = self._interval
                self._heard(machine.read())
        finally:
            machine.close()


def _cpu_temperature() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):  # Linux only
        return None
    try:
        sensors = psutil.sensors_temperatures()
    except OSError:
        return None
    readings = [reading.current for name in CPU_SENSORS for reading in sensors.get(name, ())]
    return max(readings, default=None)


def _battery() -> psutil._ntuples.sbattery | None:
    if not hasattr(psutil, "sensors_battery"):
        return None
    try:
        return psutil.sensors_battery()
    except OSError:
        return None


def _disk_counters() -> int | None:
    try:
        counters = psutil.disk_io_counters()
    except (OSError, RuntimeError):
        # Containers without a disk of their own.
        return None
    return None if counters is None else counters.read_bytes
