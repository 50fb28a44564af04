"""The second device detects ordering errors that a real card only exhibits occasionally."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from core.accelerators.base import Memory
from core.accelerators.capabilities import TABLE, capabilities_of, ordinary
from core.accelerators.card_checks import copies, replays, try_card
from core.accelerators.graph import Leave, Replay
from core.accelerators.trial import tried
from core.errors import DeviceLost, NotEnoughMemory
from core.units import MIB
from tests.core.second_device import ABLE, SecondCard, SecondDevice, second_device

ROOT = Path(__file__).resolve().parents[3]
START = """
import torch, ctypes
from tests.core.second_device import ABLE, SecondCard, second_device
device = second_device()
device.plug(True)
card = SecondCard(device)
"""
# Each reads or writes memory it may not, and prints "went on" if that is not detected.
FAULTS = {
    "the processor reads the device's memory": "ctypes.string_at(card.empty((9,), torch.uint8).data_ptr(), 1)",
    "pinned memory is written while it is copied": """
source, target = card.pinned(4096), card.empty((4096,), torch.uint8)
card.copy_async(target, source, card.stream())
source.fill_(1)
""",
    "a result is read before it was waited for": """
copy = card.to_host(torch.ones(9, device=card.device))
copy._host.sum()
""",
}


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_touch_that_is_not_allowed_ends_the_process(fault: str) -> None:
    code = START + FAULTS[fault] + "\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert not done.stdout


def violated(device: SecondDevice) -> bool:
    """Return whether there was a violation, and clear it."""
    found = bool(device.get("violations"))
    device.plug(True)
    return found


def test_reading_what_another_stream_brings_needs_a_wait(second: SecondDevice, card: SecondCard) -> None:
    source, target = card.pinned(MIB).fill_(3), card.empty((MIB,), torch.uint8)
    stream, arrived = card.stream(), card.event()
    card.copy_async(target, source, stream)
    arrived.record(stream)
    with pytest.raises(RuntimeError, match="did not wait"):
        target.sum()
    assert violated(second)
    card.wait(arrived)
    assert target.float().mean().item() == 3


def test_overwriting_what_is_still_read_needs_a_wait(second: SecondDevice, card: SecondCard) -> None:
    source, target = card.pinned(MIB), card.to_device(torch.ones(MIB, dtype=torch.uint8))
    stream, used = card.stream(), card.event()
    total = target.float().sum()
    with pytest.raises(RuntimeError, match="did not wait"):
        card.copy_async(target, source, stream)
    assert violated(second)
    card.record(used)
    stream.wait(used)
    card.copy_async(target, source, stream)
    stream.synchronize()
    assert total.item() == MIB


def test_memory_given_back_under_a_copy_is_noticed(second: SecondDevice, card: SecondCard) -> None:
    source, stream = card.pinned(MIB), card.stream()
    target = card.empty((MIB,), torch.uint8)
    card.copy_async(target, source, stream)
    del target
    assert "given back" in second.violation()
    assert violated(second)
    stream.synchronize()


def test_memory_that_was_launched_on_is_not_given_to_copies_at_once(second: SecondDevice, card: SecondCard) -> None:
    """A card's allocator reuses memory for the same stream at once; a copy on another must wait for the launched
    work."""
    second.set(capacity=2 * MIB, lag=0.001)
    busy = card.empty((MIB,), torch.uint8)
    busy.fill_(1)
    del busy
    again, source, stream = card.empty((MIB,), torch.uint8), card.pinned(MIB), card.stream()
    with pytest.raises(RuntimeError, match="did not wait"):
        card.copy_async(again, source, stream)
    assert violated(second)


def test_tensors_of_two_devices_do_not_mix(second: SecondDevice, card: SecondCard) -> None:
    there = card.to_device(torch.ones(4))
    assert torch.equal((there * torch.tensor(2.0)).cpu(), torch.full((4,), 2.0))
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(4)
    with pytest.raises(RuntimeError, match="devices"):
        torch.cat((there, torch.ones(4)))
    assert violated(second)


def test_what_was_never_written_is_not_a_number(card: SecondCard) -> None:
    assert card.empty((64,), torch.float32).isnan().all()


def test_memory_is_counted_capped_and_shared_with_others(second: SecondDevice, card: SecondCard) -> None:
    second.set(capacity=64 * MIB)
    held = card.empty((32 * MIB,), torch.uint8)
    assert card.memory().used == held.nbytes
    assert card.memory().free == 32 * MIB
    card.others(20 * MIB)
    with pytest.raises(NotEnoughMemory) as raised:
        card.empty((16 * MIB,), torch.uint8)
    assert raised.value.device == card.name
    card.others(0)
    card.limit(40 * MIB)
    with pytest.raises(NotEnoughMemory):
        card.empty((16 * MIB,), torch.uint8)
    card.limit(None)
    del held
    assert card.memory().used == 0
    assert card.empty((60 * MIB,), torch.uint8).nbytes == card.memory().peak


def test_pinning_can_fail(second: SecondDevice, card: SecondCard) -> None:
    second.set(pin_limit=card.pinned_bytes + 3 * MIB)
    first = card.pinned(2 * MIB)
    assert first.is_pinned()
    with pytest.raises(NotEnoughMemory) as raised:
        card.pinned(2 * MIB)
    assert raised.value.device == "pinned"


def test_only_pinned_copies_run_beside_the_host(second: SecondDevice, card: SecondCard) -> None:
    second.set(link=8e6)  # half a second
    target, stream, arrived = card.empty((4 * MIB,), torch.uint8), card.stream(), card.event()
    began = time.perf_counter()
    card.copy_async(target, card.pinned(4 * MIB), stream)
    arrived.record(stream)
    assert not arrived.query() or time.perf_counter() - began > 0.5, "unless this thread was held up"
    arrived.synchronize()
    card.copy_async(torch.empty(4 * MIB, dtype=torch.uint8), target, stream)
    arrived.record(stream)
    assert arrived.query()


def test_after_the_device_is_lost_everything_says_so_until_it_is_back(second: SecondDevice, card: SecondCard) -> None:
    source, target = card.pinned(MIB), card.empty((MIB,), torch.uint8)
    stream, event = card.stream(), card.event()
    card.copy_async(target, source, stream)
    event.record(stream)
    card.lose()
    calls = [
        event.synchronize, event.query, event.record, stream.synchronize, card.memory, card.synchronize, card.stream,
        partial(card.empty, (1,), torch.uint8), partial(card.copy_async, target, source, stream),
        partial(card.launch, partial(torch.add, target, 1)), partial(card.to_host, target),
        partial(card.to_device, torch.ones(1)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(DeviceLost):
            call()
    card.come_back()
    card.synchronize()
    assert card.to_host(card.to_device(torch.ones(3))).result().tolist() == [1, 1, 1]


def test_a_launch_can_fail_and_is_told_of_where_it_is_waited_for(second: SecondDevice, card: SecondCard) -> None:
    second.set(fail_after=1)
    there = card.to_device(torch.ones(3))
    with pytest.raises(DeviceLost):
        card.launch(lambda: there + 1)
    with pytest.raises(DeviceLost):
        card.synchronize()


def test_locked_memory_that_was_given_back_is_not_counted(second: SecondDevice, card: SecondCard) -> None:
    before = card.pinned_bytes
    held = card.pinned(3 * MIB)
    assert card.pinned_bytes == before + 3 * MIB
    del held
    assert card.pinned_bytes == before


graphs = pytest.mark.skipif(not hasattr(torch.accelerator, "Graph"), reason="this torch has no graphs for all devices")


@graphs
def test_what_is_captured_is_done_when_it_is_replayed(second: SecondDevice, card: SecondCard) -> None:
    total = card.to_device(torch.zeros(3))
    replay = card.captured(lambda _, x: total.add_(x).clone(), [torch.ones(3)])
    assert replay is not None
    assert total.tolist() == [1, 1, 1], "done once before the capture, and not in it"
    launches = second.get("launches")
    result = replay(torch.full((3,), 5.0))
    assert second.get("launches") == launches + 2  # the input's copy, and the captured work
    assert result.tolist() == total.tolist() == [6, 6, 6]
    assert replay(torch.ones(3)).tolist() == [7, 7, 7]
    assert second.get("replays") == 2
    replay.drop()


WAITS: dict[str, Callable[[SecondCard, torch.Tensor], object]] = {
    "a number is asked for": lambda card, x: x.sum().item(),
    "a result is copied": lambda card, x: x.cpu(),
    "a copy is begun": lambda card, x: card.to_host(x),
    "something is copied there": lambda card, x: x + torch.ones(3).to(x.device),
    "the device is waited for": lambda card, x: card.synchronize(),
    "an event is recorded": lambda card, x: card.record(card.event()),
    "memory is locked": lambda card, x: card.pinned(9),
    "only values tell the shape": lambda card, x: x.nonzero(),
}


@graphs
@pytest.mark.parametrize("wait", WAITS)
def test_what_waits_for_the_host_cannot_be_captured(second: SecondDevice, card: SecondCard, wait: str) -> None:
    used = card.memory().used

    def work(_: Leave, x: torch.Tensor) -> torch.Tensor:
        WAITS[wait](card, x)
        return x

    with pytest.raises((RuntimeError, DeviceLost)):
        card.captured(work, [torch.ones(3)])
    gc.collect()
    assert card.memory().used == used
    assert (card.to_device(torch.ones(2)) + 1).tolist() == [2, 2], "the card goes on"
    assert replays(card)


@graphs
def test_memory_of_what_was_captured_is_its_own_until_it_is_dropped(second: SecondDevice, card: SecondCard) -> None:
    used = card.memory().used
    replay = card.captured(lambda _, x: ((x + 1) * 2 - 1) * 3, [torch.zeros(MIB)])
    assert replay is not None
    held = card.memory().used - used
    assert held == 3 * 4 * MIB, "the input, and two that take turns"
    other = card.to_device(torch.full((MIB,), 7.0))
    assert replay(torch.zeros(MIB)).unique().tolist() == [3]
    assert other.unique().tolist() == [7]
    del other
    replay.drop()
    del replay
    assert card.memory().used == used


def captured_around_a_gap(card: SecondCard) -> Replay:
    """Return two graphs of four operations each, whose tensors take 4 MiB."""
    replay = card.captured(
        lambda leave, x: ((leave(((x + 1) * 2 - 1) * 3) + 1) * 2 - 1) * 3, [torch.zeros(MIB)], back=torch.zeros(MIB)
    )
    assert replay is not None
    return replay


@graphs
def test_graphs_around_a_gap_share_memory(second: SecondDevice, card: SecondCard) -> None:
    used = card.memory().used
    replay = captured_around_a_gap(card)
    held = card.memory().used - used
    assert held == 5 * 4 * MIB, "the input, the gap's result, those of the graphs, and one that both overwrite"
    assert replay(torch.zeros(MIB), gaps=[lambda x: x + 1]).unique().tolist() == [27]
    replay.drop()
    del replay
    assert card.memory().used == used


@graphs
def test_memory_is_freed_while_an_error_of_the_replay_is_handled(second: SecondDevice, card: SecondCard) -> None:
    """Where memory is short at a gap, graphs must make room while the error still refers to them."""
    used = card.memory().used
    replay = captured_around_a_gap(card)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise NotEnoughMemory("", "", "")

    with pytest.raises(NotEnoughMemory) as raised:
        replay(torch.zeros(MIB), gaps=[fail])
    card.synchronize()
    replay.drop()
    assert card.memory().used - used == 4 * 4 * MIB, "what goes in and comes out"
    del raised, replay
    gc.collect()
    assert card.memory().used == used


@graphs
def test_a_replay_waits_for_what_it_reads(second: SecondDevice, card: SecondCard) -> None:
    there, source = card.to_device(torch.zeros(MIB)), card.pinned(4 * MIB).view(torch.float32).fill_(2)
    replay = card.captured(lambda _, x: there + x, [torch.zeros(1)])
    assert replay is not None
    stream, arrived = card.stream(), card.event()
    card.copy_async(there, source, stream)
    arrived.record(stream)
    with pytest.raises(RuntimeError, match="did not wait"):
        replay(torch.ones(1))
    assert violated(second)
    card.wait(arrived)
    assert replay(torch.ones(1)).unique().tolist() == [3]


@graphs
def test_a_replay_that_uses_what_is_gone_is_noticed(second: SecondDevice, card: SecondCard) -> None:
    held = [card.to_device(torch.zeros(9))]
    replay = card.captured(lambda _, x: held[0] + x, [torch.zeros(1)])
    assert replay is not None
    replay(torch.ones(1)).tolist()
    held.clear()
    again = card.to_device(torch.ones(9))  # possibly at the same address
    with pytest.raises(RuntimeError, match="given back"):
        replay(torch.ones(1))
    assert violated(second)
    assert again.tolist() == [1] * 9


def test_it_is_there_only_while_it_is_plugged_in(second: SecondDevice) -> None:
    assert torch.accelerator.is_available()
    second.plug(False)
    assert not torch.accelerator.is_available()
    assert second_device() is second


def test_a_card_is_tried_before_it_is_used(second: SecondDevice, card: SecondCard) -> None:
    trial = try_card(card.device)
    assert (trial.why, trial.name, trial.kind) == ("", "Second device", "second")
    works = {one.name: one.works for one in trial.abilities.attempts}
    graphs = hasattr(torch.accelerator, "Graph")
    assert works == {"torch's 8-bit products": True, "torch's 4-bit products": False, "graphs": graphs}
    assert trial.abilities.products == ABLE.products
    assert not trial.abilities.own_kernels
    assert not trial.unified
    assert min(trial.up_bytes_s, trial.down_bytes_s) > 0
    assert replays(card) == trial.graphs == graphs


def test_what_the_trial_of_a_card_ends_with_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(99).why == "The installed torch finds no card."
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "exit code 1" in tried(0).why


def test_a_card_without_streams_is_tried_and_used_like_others(second: SecondDevice, card: SecondCard) -> None:
    """As Apple's, whose one stream torch cannot wait for."""
    card.can = replace(card.can, streams=False, pinned=ordinary)
    second.set(one_stream=1, lag=0.001)
    up_s, down_s, whole = copies(card)
    assert whole
    assert min(up_s, down_s) > 0
    busy = torch.ones(MIB, device=card.device).sum()
    card.stream().synchronize()
    assert not second.get("waiting")
    assert busy.item() == MIB


def test_memory_of_apples_cards_is_not_asked_of_the_common_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ends in an internal error of torch there before 2.13."""

    def fail(*_: object) -> None:
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    for name in ("empty_cache", "reset_peak_memory_stats", "memory_allocated", "memory_reserved", "get_memory_info"):
        monkeypatch.setattr(torch.accelerator, name, fail)
    released = list[str]()
    figures = {"current_allocated_memory": 3, "driver_allocated_memory": 5, "recommended_max_memory": 9}
    for name, value in figures.items():
        monkeypatch.setattr(torch.mps, name, lambda value=value: value)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("all"))
    device = torch.device("mps", 0)
    apples = capabilities_of(device)
    apples.release()
    apples.reset_peak(device)
    assert released == ["all"]
    assert apples.total(device) == 9
    assert apples.memory(device) == Memory(free=6, total=9, used=3, peak=5, cached=2)


def nothing_free(_: torch.device) -> tuple[int, int]:
    return 0, 8 * MIB


def no_answer(_: torch.device) -> tuple[int, int]:
    raise RuntimeError("The device doesn't support querying the available free memory.")


@pytest.mark.parametrize("report", [nothing_free, no_answer])
def test_where_a_driver_reports_no_free_memory_what_is_not_ours_counts(
    second: SecondDevice, card: SecondCard, monkeypatch: pytest.MonkeyPatch, report: Callable[..., tuple[int, int]]
) -> None:
    """As Intel's for integrated graphics."""
    second.set(capacity=8 * MIB)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", report)
    held = card.empty((3 * MIB,), torch.uint8)
    memory = TABLE["xpu"].memory(card.device)
    assert (memory.free, memory.total, memory.used) == (5 * MIB, 8 * MIB, held.nbytes)
