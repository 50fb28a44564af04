"""Figures of NVIDIA cards from NVML. Imported late; empty without the library or a card."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

log = logging.getLogger(__name__)

TRY_AGAIN_S = 30.0
OTHERS_SHOWN = 3


@dataclass(frozen=True)
class GpuSample:
    """One card. Sizes in bytes, rates in bytes per second as seen by the card: `link_in` comes from the host."""

    index: int
    name: str
    bus_id: str = ""
    busy_percent: float | None = None
    vram_total: int | None = None
    vram_used: int | None = None
    vram_own: int | None = None
    others: tuple[tuple[str, int], ...] = ()
    """The largest other holders of its memory: program and bytes."""
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    link_in_bytes_s: float | None = None
    link_out_bytes_s: float | None = None
    slowed_by_heat: bool | None = None
    slowed_by_power: bool | None = None

    @property
    def vram_others(self) -> int | None:
        """Memory held by other programs and the driver."""
        if self.vram_used is None or self.vram_own is None:
            return None
        return max(0, self.vram_used - self.vram_own)


class Nvml:
    """A connection to the driver, opened with the first reading and again some time after it was lost."""

    def __init__(self, own_pid: int) -> None:
        self._own_pid = own_pid
        self._library: Any = None
        self._next_try = 0.0
        self._missing = False
        self._counters: dict[int, tuple[float, int, int]] = {}

    def read(self, now: float) -> tuple[GpuSample, ...]:
        """Return a sample of each card. `now`: time.monotonic()."""
        if self._library is None and not self._open(now):
            return ()
        nvml = self._library
        try:
            cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            log.info("The graphics driver stopped answering: %s", error)
            self.close()
            self._next_try = now + TRY_AGAIN_S
            return ()
        return tuple(self._card(index, handle, now) for index, handle in enumerate(cards))

    def close(self) -> None:
        if self._library is None:
            return
        library, self._library = self._library, None
        self._counters.clear()
        _known(library, library.nvmlShutdown)

    def _open(self, now: float) -> bool:
        if now < self._next_try:
            return False
        try:
            import pynvml
        except ImportError:
            self._next_try = float("inf")
            return False
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if not self._missing:
                self._missing = True
                log.info("No NVIDIA card to watch: %s", error)
            self._next_try = now + TRY_AGAIN_S
            return False
        self._library, self._missing = pynvml, False
        return True

    def _card(self, index: int, handle: Any, now: float) -> GpuSample:
        nvml = self._library
        use = _known(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = _known(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        power, limit = (
            _known(nvml, ask, handle) for ask in (nvml.nvmlDeviceGetPowerUsage, nvml.nvmlDeviceGetEnforcedPowerLimit)
        )
        own, others = self._holders(handle)
        link_in, link_out = self._link(index, handle, now)
        reasons = _known(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        heat = nvml.nvmlClocksThrottleReasonHwThermalSlowdown | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        return GpuSample(
            index=index,
            name=_text(_known(nvml, nvml.nvmlDeviceGetName, handle)) or f"GPU {index}",
            bus_id=_text(getattr(_known(nvml, nvml.nvmlDeviceGetPciInfo, handle), "busId", "")),
            busy_percent=None if use is None else float(use.gpu),
            vram_total=None if memory is None else int(memory.total),
            vram_used=None if memory is None else int(memory.used),
            vram_own=own,
            others=others,
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=_known(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            link_in_bytes_s=link_in,
            link_out_bytes_s=link_out,
            slowed_by_heat=None if reasons is None else bool(reasons & heat),
            slowed_by_power=None if reasons is None else bool(reasons & nvml.nvmlClocksEventReasonSwPowerCap),
        )

    def _holders(self, handle: Any) -> tuple[int | None, tuple[tuple[str, int], ...]]:
        """Return the bytes held by this process and the largest other holders; Windows does not report sizes."""
        nvml = self._library
        asks = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
        lists = [found for ask in asks if (found := _known(nvml, ask, handle)) is not None]
        held = {process.pid: process.usedGpuMemory for found in lists for process in found}
        if not lists or any(size is None for size in held.values()):
            return None, ()
        names = {pid: program_of(pid) for pid in held if pid != self._own_pid}
        # In a container the driver reports process ids of the host, which mean nothing here.
        if any(name is None for name in names.values()):
            return held.get(self._own_pid), ()
        others = sorted(((str(name), held[pid]) for pid, name in names.items()), key=lambda pair: -pair[1])
        return held.get(self._own_pid, 0), tuple(others[:OTHERS_SHOWN])

    def _link(self, index: int, handle: Any, now: float) -> tuple[float | None, float | None]:
        """Return bytes per second in and out, from counters since the last reading, else from a 20 ms sample."""
        nvml = self._library
        fields = [nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES]
        values = _known(nvml, nvml.nvmlDeviceGetFieldValues, handle, fields)
        if values is None or any(value.nvmlReturn != nvml.NVML_SUCCESS for value in values):
            counters = (nvml.NVML_PCIE_UTIL_RX_BYTES, nvml.NVML_PCIE_UTIL_TX_BYTES)
            rates = [_known(nvml, nvml.nvmlDeviceGetPcieThroughput, handle, counter) for counter in counters]
            received, sent = (None if rate is None else rate * 1024.0 for rate in rates)
            return received, sent
        before = self._counters.get(index)
        count_in, count_out = (int(value.value.ullVal) for value in values)
        self._counters[index] = (now, count_in, count_out)
        if before is None or now <= before[0] or count_in < before[1] or count_out < before[2]:
            return None, None
        seconds = now - before[0]
        return (count_in - before[1]) / seconds, (count_out - before[2]) / seconds


def _known(nvml: Any, ask: Callable[..., Any], *values: Any) -> Any:
    """Call an NVML function; None if this card or driver does not support it."""
    try:
        return ask(*values)
    except nvml.NVMLError:
        return None


def program_of(pid: int) -> str | None:
    """Return the name of a running program; None if it has ended or may not be queried."""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
