"""The live view's data as frozen records, made from a plan and a sample. No Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from app.monitor.telemetry import Sample
from core.spec import (
    DECODE,
    PREFILL,
    BytesPerToken,
    Confidence,
    Fits,
    Format,
    FormatWish,
    Gpu,
    Hardware,
    KvFormat,
    ModelSpec,
    Plan,
    Prediction,
    Times,
)


@dataclass(frozen=True)
class DeviceMap:
    """The use of a device's memory in bytes; None = unknown."""

    name: str
    kind: Literal["gpu", "cpu"]
    total: int | None
    weights: int = 0
    kv_cache: int = 0
    workspace: int = 0
    staging: int = 0
    other: int | None = None
    """Held by other programs and the system."""
    index: int = -1
    """The card's index in NVML's order if known; -1 for RAM."""

    @property
    def own(self) -> int:
        """Bytes taken by the model."""
        return self.weights + self.kv_cache + self.workspace + self.staging

    @property
    def free(self) -> int | None:
        """Free bytes, never negative; None if unknown."""
        if self.total is None or self.other is None:
            return None
        return max(0, self.total - self.other - self.own)


@dataclass(frozen=True)
class Split:
    """Shares of the weight bytes: resident in VRAM, streamed to it, computed by the CPU. They add up to 1."""

    resident: float
    streamed: float
    cpu: float


@dataclass(frozen=True)
class Outlook:
    """A plan as shown to users: where everything lies, how it is computed, and how fast."""

    devices: tuple[DeviceMap, ...]
    decode: Split
    prefill: Split
    decode_tok_s: Prediction
    prefill_tok_s: Prediction
    confidence: Confidence
    fits: Fits
    reason: str
    format: Format
    context: int
    times: Times
    """The predicted parts of one token's time."""
    bytes_per_token: BytesPerToken
    kv: KvFormat = "bf16"
    tip: str = ""
    """The one thing that would help most."""


@dataclass(frozen=True)
class Wish:
    """Position of the what-if sliders. `vram_share`: part of the card's memory that may be used, 0-1."""

    context: int
    format: FormatWish
    vram_share: float
    kv: KvFormat = "bf16"


def outlook(plan: Plan, spec: ModelSpec, hardware: Hardware, tip: str = "") -> Outlook:
    """Convert a plan for display."""
    return Outlook(
        devices=devices(plan, hardware),
        decode=split(plan, spec, DECODE),
        prefill=split(plan, spec, PREFILL),
        decode_tok_s=plan.decode,
        prefill_tok_s=plan.prefill,
        confidence=plan.confidence,
        fits=plan.fits,
        reason=plan.reason,
        format=plan.format,
        context=plan.context,
        times=plan.decode_times,
        bytes_per_token=plan.bytes_per_token,
        kv=plan.kv,
        tip=tip,
    )


def split(plan: Plan, spec: ModelSpec, bucket: int) -> Split:
    """Return the split over all linears in one phase, weighted by their bytes."""
    sizes = [
        spec.linear_bytes(item, plan.format) / one.rows for item, one in zip(spec.linears, plan.linears, strict=True)
    ]
    rows = [linear.shares[bucket] for linear in plan.linears]
    resident = sum(size * part.resident for size, part in zip(sizes, rows, strict=True))
    streamed = sum(size * part.streamed for size, part in zip(sizes, rows, strict=True))
    whole = sum(size * part.total for size, part in zip(sizes, rows, strict=True)) or 1
    return Split(resident / whole, streamed / whole, 1 - (resident + streamed) / whole)


def devices(plan: Plan, hardware: Hardware) -> tuple[DeviceMap, ...]:
    """Return the planned memory by device, graphics cards first."""
    cards = {f"{gpu.kind}:{gpu.index}": gpu for gpu in hardware.gpus}
    maps = []
    for memory in plan.memory:
        gpu = cards.get(memory.device)
        total = gpu.vram_total if gpu else hardware.cpu.ram_total
        maps.append(
            DeviceMap(
                _name(gpu),
                "gpu" if gpu else "cpu",
                total,
                memory.weights,
                memory.kv_cache,
                memory.workspace,
                memory.staging,
                max(0, total - memory.free_before),
                gpu.index if gpu else -1,
            )
        )
    return tuple(sorted(maps, key=lambda device: device.kind == "cpu"))


def _name(gpu: Gpu | None) -> str:
    if gpu is None:
        return "Memory (RAM)"
    return f"{gpu.name} (simulated)" if gpu.simulated else gpu.name


def with_sample(device: DeviceMap, sample: Sample) -> DeviceMap:
    """Update what other programs hold from a sample, if it is known there."""
    if device.kind == "cpu":
        return replace(device, total=sample.ram_total or device.total, other=_other_ram(device, sample))
    card = next((card for card in sample.gpus if card.name == device.name), None)
    if card is None:
        return device
    return replace(
        device, total=card.vram_total or device.total, other=_other_vram(device, card.vram_used, card.vram_others)
    )


def _other_ram(device: DeviceMap, sample: Sample) -> int | None:
    if sample.ram_used is None or sample.own_ram is None:
        return device.other
    # Mapped weights are pages that the system may drop: psutil counts them both as ours and as available.
    return max(0, sample.ram_used - max(0, sample.own_ram - device.weights))


def _other_vram(device: DeviceMap, used: int | None, others: int | None) -> int | None:
    if others is not None:
        return others
    return device.other if used is None else max(0, used - device.own)


def idle_devices(sample: Sample) -> tuple[DeviceMap, ...]:
    """Return the memory by device while no model is loaded."""
    cards = [
        DeviceMap(card.name, "gpu", card.vram_total, other=card.vram_used, index=card.index) for card in sample.gpus
    ]
    return (*cards, DeviceMap(_name(None), "cpu", sample.ram_total, other=sample.ram_used))
