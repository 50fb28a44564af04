from __future__ import annotations

from dataclasses import replace

import pytest

from app.monitor.bottleneck import Situation, explain
from app.monitor.live_records import DeviceMap, Outlook, Split, idle_devices, outlook, with_sample
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from core.planning.planner import place
from core.spec import (
    Budget,
    BytesPerToken,
    Cpu,
    Gpu,
    Hardware,
    KernelRate,
    KvLayer,
    LinearSpec,
    Link,
    ModelSpec,
    Prediction,
    Times,
)
from core.units import GIB

SPEC = ModelSpec(
    "tiny-8b", "llama", 4, 4096, 32000, 8192,
    tuple(LinearSpec(f"layers.{layer}.{name}", 4096, 4096, layer * 2 + number, layer)
          for layer in range(4) for number, name in enumerate(("attn", "mlp"))),
    tuple(KvLayer(layer, 4096) for layer in range(4)), 1 << 20, 1 << 20, "layers.3.mlp", False,
)  # fmt: skip
"""A model of eight linears, 32 MiB each in bf16."""
RATE = KernelRate("bf16", 20e9, (1e11, 1e11, 5e11, 8e11))
CPU = Cpu("cpu", 8, 16, (), 16 * GIB, 12 * GIB, 40e9, (RATE,))


def card(vram_free: int) -> Gpu:
    return Gpu("Card", 0, 8 * GIB, vram_free, 200e9, 1e13, Link(12e9, 6e9, 12e9, 6e9, 10e9))


def shown(*gpus: Gpu, format: str = "bf16", context: int = 2048) -> Outlook:
    hardware = Hardware(CPU, gpus)
    return outlook(place(SPEC, hardware, Budget(format=format, context=context)), SPEC, hardware)  # type: ignore[arg-type]


def test_without_a_card_the_cpu_has_everything() -> None:
    look = shown()
    assert look.decode == look.prefill == Split(0, 0, 1)
    (ram,) = look.devices
    assert (ram.kind, ram.total, ram.other) == ("cpu", 16 * GIB, 4 * GIB)
    assert ram.free == 16 * GIB - 4 * GIB - ram.own


def test_a_card_with_room_holds_all_and_stands_first() -> None:
    look = shown(card(6 * GIB))
    assert [device.kind for device in look.devices] == ["gpu", "cpu"]
    assert look.decode.resident == 1
    assert look.devices[0].weights >= SPEC.weight_bytes("bf16") * 0.9
    assert look.devices[0].other == 2 * GIB


def test_what_others_hold_comes_from_the_newest_sample() -> None:
    look = shown(card(6 * GIB))
    sample = Sample(0, ram_total=16 * GIB, ram_available=10 * GIB, own_ram=1 * GIB, gpus=(
        GpuSample(0, "Card", vram_total=8 * GIB, vram_used=5 * GIB, vram_own=3 * GIB),
    ))  # fmt: skip
    gpu, ram = (with_sample(device, sample) for device in look.devices)
    assert gpu.other == 2 * GIB
    assert ram.other == 6 * GIB - max(0, 1 * GIB - look.devices[1].weights)
    blind = Sample(0, gpus=(GpuSample(0, "Card"),))
    assert [with_sample(device, blind) for device in look.devices] == list(look.devices)


def test_free_is_unknown_where_a_part_is_unknown_and_never_negative() -> None:
    assert DeviceMap("x", "gpu", 10, other=None).free is None
    assert DeviceMap("x", "gpu", None, other=3).free is None
    assert DeviceMap("x", "gpu", 10, weights=9, other=5).free == 0


def test_idle_devices_need_no_card() -> None:
    (ram,) = idle_devices(Sample(0, ram_total=8, ram_available=5))
    assert (ram.other, ram.free, ram.own) == (3, 5, 0)


CALM = Sample(0, cpu_percent=60, own_cpu_percent=55, ram_total=16 * GIB, ram_available=8 * GIB, disk_read_bytes_s=1e6)
LOOK = Outlook(
    (), Split(0.3, 0.2, 0.5), Split(0.3, 0.7, 0), Prediction(8, 10, 12), Prediction(80, 100, 120), "derived", "yes",
    "", "int8", 4096, Times(cpu=0.05, link=0.04, gpu=0.01, total=0.1), BytesPerToken(int(3e9), int(5e8), int(2e9)),
)  # fmt: skip
GPU = GpuSample(0, "Card", vram_total=8 * GIB, vram_used=6 * GIB, vram_own=3 * GIB, others=(("game", 3 * GIB),))


@pytest.mark.parametrize(
    ("bound", "changed", "look", "tok_s", "word"),
    [
        ("ram", {}, LOOK, 10, "3.0 GB"),
        ("link", {}, replace(LOOK, times=Times(cpu=0.02, link=0.09, total=0.1)), 10, "500 MB"),
        ("gpu", {}, replace(LOOK, times=Times(gpu=0.09, total=0.1)), 10, "2.0 GB"),
        ("steps", {}, replace(LOOK, times=Times(gpu=0.01, overhead=0.05, total=0.1)), 10, "small steps"),
        ("disk", {}, replace(LOOK, times=Times(cpu=0.1, disk=0.9, total=1)), 1, "larger than the free memory"),
        ("disk", {"disk_read_bytes_s": 3e8, "ram_available": GIB // 4}, LOOK, 3, "300 MB/s"),
        ("ram", {"disk_read_bytes_s": 3e8}, LOOK, 10, "bandwidth"),
        ("heat", {"gpus": (replace(GPU, slowed_by_heat=True, temperature_c=91),)}, LOOK, 9, "91 °C"),
        ("battery", {"on_battery": True}, LOOK, 9, "battery"),
        ("programs", {"cpu_percent": 95}, LOOK, 5, "40 %"),
        ("ram", {"cpu_percent": 95}, LOOK, 10, "bandwidth"),
        ("power", {"gpus": (replace(GPU, slowed_by_power=True, power_limit_w=115),)}, LOOK, 5, "115 W"),
        ("programs", {"gpus": (GPU,)}, LOOK, 10, "3.0 GB of the graphics memory (game)"),
        ("ram", {"gpus": (GpuSample(0, "Card"),), "cpu_percent": None, "ram_total": None}, LOOK, None, "3.0 GB"),
    ],
)  # fmt: skip
def test_the_cause_is_named_with_its_figure_and_a_way_out(
    bound: str, changed: dict[str, object], look: Outlook, tok_s: float | None, word: str
) -> None:
    sample = replace(CALM, **changed)  # type: ignore[arg-type]
    found = explain(Situation(sample, look, tok_s))
    assert found.bound == bound
    assert word in found.sentence
    assert found.sentence.endswith(".")
    assert found.help.endswith(".")
