import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from core.accelerators.card import failure_of
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulated_queues import SimulatedEvent
from core.accelerators.simulation_spec import Simulation, parse_simulation
from core.errors import BadRequest, DeviceLost, NotEnoughMemory
from core.units import GIB, MIB

ATTEMPTS = 3
SLOW = 8e6
"""Bytes per second of a link whose copies are in flight whenever a thread checks, unless it was held up for as long."""


@pytest.fixture
def device() -> Iterator[SimulatedAccelerator]:
    accelerator = SimulatedAccelerator(Simulation(vram=64 * MIB, link=1e9))
    yield accelerator
    accelerator.close()


@pytest.fixture
def slow() -> Iterator[SimulatedAccelerator]:
    accelerator = SimulatedAccelerator(Simulation(vram=64 * MIB, link=SLOW))
    yield accelerator
    accelerator.close()


def touched(device: SimulatedAccelerator, nbytes: int) -> torch.Tensor:
    """Return a device buffer whose pages are mapped already: mapping takes longer than copying."""
    return device.empty((nbytes // 4,), torch.float32).zero_()


def filled(device: SimulatedAccelerator, nbytes: int, value: float) -> torch.Tensor:
    tensor = device.pinned(nbytes).view(torch.float32)
    return tensor.fill_(value)


def in_flight(began: float, nbytes: int, event: SimulatedEvent) -> bool:
    """Return whether a copy over the slow link has not arrived, if it cannot have by now."""
    return not event.query() or time.perf_counter() - began > nbytes / SLOW


def shortest(attempt: Callable[[], float], at_least: float) -> float:
    """Return the seconds of the fastest attempt; none may be shorter than the link's time."""
    times = [attempt() for _ in range(ATTEMPTS)]
    assert min(times) > at_least * 0.9
    return min(times)


def test_simulations_are_read() -> None:
    assert parse_simulation("vram=6GiB,link=12GB/s") == Simulation(6 * GIB, 12e9, None)
    assert parse_simulation("link=1GB/s, vram=512MiB, gpu=200GB/s") == Simulation(512 * MIB, 1e9, 200e9)
    assert parse_simulation("vram=1GiB,link=1GB/s,cores=2") == Simulation(GIB, 1e9, None, 2)


NOT_A_CARD = (
    "", "vram=6GiB", "vram=6GiB,link=fast", "vram=6GiB,link=1GB/s,fans=2", "6GiB,1GB/s",
    "vram=6GiB,link=1GB/s,cores=-1", "vram=6GiB,link=1GB/s,cores=many",
)  # fmt: skip


@pytest.mark.parametrize("text", NOT_A_CARD)
def test_other_descriptions_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_simulation(text)


def test_memory_is_accounted_and_given_back_with_the_last_view(device: SimulatedAccelerator) -> None:
    tensor = device.empty((1024, 1024), torch.float32)
    view = tensor[5:10]
    assert device.memory().used == 4 * MIB
    assert device.memory().free == 60 * MIB
    del tensor
    gc.collect()
    assert device.memory().used == 4 * MIB
    del view
    gc.collect()
    assert device.memory().used == 0
    assert device.memory().peak == 4 * MIB


def test_tensors_are_aligned_for_vector_kernels(device: SimulatedAccelerator) -> None:
    assert all(device.empty((count,), torch.int8).data_ptr() % 64 == 0 for count in (1, 63, 1000))


def test_more_than_there_is_raises_and_changes_nothing(device: SimulatedAccelerator) -> None:
    held = device.empty((60 * MIB,), torch.uint8)
    with pytest.raises(NotEnoughMemory) as raised:
        device.empty((5 * MIB,), torch.uint8)
    assert raised.value.device == "simulated:0"
    assert device.memory().used == held.nbytes


def test_the_pool_can_shrink_and_grow_and_others_can_hold_of_it(device: SimulatedAccelerator) -> None:
    held = device.empty((32 * MIB,), torch.uint8)
    device.resize(16 * MIB)
    assert device.memory().free == -16 * MIB
    with pytest.raises(NotEnoughMemory):
        device.empty((1,), torch.uint8)
    device.resize(64 * MIB)
    device.others(31 * MIB)
    assert device.memory().free == MIB
    device.limit(32 * MIB)
    with pytest.raises(NotEnoughMemory):
        device.empty((1,), torch.uint8)
    assert device.memory().free == MIB, "a limit of our own says nothing about what others leave"
    assert held.nbytes == 32 * MIB


def test_pinning_can_fail(device: SimulatedAccelerator) -> None:
    device.pin_limit = 3 * MIB
    first = device.pinned(2 * MIB)
    with pytest.raises(NotEnoughMemory) as raised:
        device.pinned(2 * MIB)
    assert raised.value.device == "pinned"
    assert device.pinned_bytes == first.nbytes


def test_a_copy_takes_its_time_beside_this_thread_and_then_is_whole(device: SimulatedAccelerator) -> None:
    source = filled(device, 20 * MIB, 3.0)
    target = touched(device, 20 * MIB)
    stream, arrived = device.stream(), device.event()

    def copy() -> float:
        start = time.perf_counter()
        device.copy_async(target, source, stream)
        arrived.record(stream)
        arrived.synchronize()
        return time.perf_counter() - start

    shortest(copy, 20 * MIB / 1e9)
    assert arrived.query()
    assert torch.equal(target, source)


def test_memory_that_is_not_pinned_is_copied_while_the_caller_waits(device: SimulatedAccelerator) -> None:
    source, target = torch.arange(5 * MIB, dtype=torch.float32), touched(device, 20 * MIB)
    stream, arrived = device.stream(), device.event()
    device.copy_async(target, source, stream)
    arrived.record(stream)
    source.zero_()
    arrived.synchronize()
    assert torch.equal(target, torch.arange(5 * MIB, dtype=torch.float32))
    back = torch.empty(5 * MIB)
    device.copy_async(back, target, stream)
    assert torch.equal(back, target)


def test_who_starts_a_copy_does_not_wait_for_it(slow: SimulatedAccelerator) -> None:
    source, target = filled(slow, 4 * MIB, 3.0), touched(slow, 4 * MIB)
    stream, arrived, began = slow.stream(), slow.event(), time.perf_counter()
    slow.copy_async(target, source, stream)
    arrived.record(stream)
    assert in_flight(began, source.nbytes, arrived)
    arrived.synchronize()
    assert arrived.query()


@pytest.mark.timed
@pytest.mark.parametrize("rate", [0.4e9, 1.5e9])
def test_the_link_keeps_its_rate(rate: float) -> None:
    device = SimulatedAccelerator(Simulation(64 * MIB, rate))
    source, target = filled(device, 8 * MIB, 1.0), touched(device, 8 * MIB)
    stream = device.stream()

    def copy() -> float:
        start, busy = time.perf_counter(), device.link_busy_s
        for _ in range(8):
            device.copy_async(target, source, stream)
        stream.synchronize()
        assert device.link_busy_s - busy == pytest.approx(64 * MIB / rate)
        return time.perf_counter() - start

    assert shortest(copy, 64 * MIB / rate) < 1.1 * 64 * MIB / rate
    device.close()


def test_two_streams_share_one_link(device: SimulatedAccelerator) -> None:
    source, targets = filled(device, 10 * MIB, 1.0), [touched(device, 10 * MIB) for _ in range(2)]
    streams = [device.stream(), device.stream()]

    def copy() -> float:
        start = time.perf_counter()
        for target, stream in zip(targets, streams, strict=True):
            device.copy_async(target, source, stream)
        device.synchronize()
        return time.perf_counter() - start

    shortest(copy, 20 * MIB / 1e9)


def test_a_small_copy_does_not_wait_for_a_whole_large_one(slow: SimulatedAccelerator) -> None:
    large, target = filled(slow, 8 * MIB, 1.0), touched(slow, 8 * MIB)
    stream, arrived, began = slow.stream(), slow.event(), time.perf_counter()
    slow.copy_async(target, large, stream)
    arrived.record(stream)
    slow.to_device(torch.ones(100))
    assert in_flight(began, large.nbytes, arrived)
    arrived.synchronize()


def test_what_has_not_arrived_is_not_a_number(slow: SimulatedAccelerator) -> None:
    source, target = filled(slow, 8 * MIB, 1.0), slow.empty((1024, 2048), torch.float32)
    target.fill_(7.0)
    stream, arrived, began = slow.stream(), slow.event(), time.perf_counter()
    slow.copy_async(target, source.view(1024, 2048), stream)
    arrived.record(stream)
    early = target @ torch.ones(2048)
    assert torch.isnan(early).any() or time.perf_counter() - began > source.nbytes / SLOW, "used before its event"
    arrived.synchronize()
    assert torch.equal(target @ torch.ones(2048), torch.full((1024,), 2048.0))


def test_launched_work_waits_for_copies_and_the_caller_does_not(slow: SimulatedAccelerator) -> None:
    source, target = filled(slow, 4 * MIB, 2.0), touched(slow, 4 * MIB)
    result = torch.zeros(1)
    stream, arrived, began = slow.stream(), slow.event(), time.perf_counter()
    slow.copy_async(target, source, stream)
    arrived.record(stream)
    slow.wait(arrived)
    slow.launch(lambda: torch.sum(target[:10], dim=0, keepdim=True, out=result))
    assert in_flight(began, source.nbytes, arrived)
    slow.settle()
    assert result.item() == 20.0


def test_a_slot_is_not_overwritten_before_it_has_been_used(device: SimulatedAccelerator) -> None:
    slot, stream = touched(device, 4 * MIB), device.stream()
    arrived, freed = device.event(), device.event()
    seen: list[float] = []
    for value in (1.0, 2.0, 3.0):
        stream.wait(freed)
        device.copy_async(slot, filled(device, 4 * MIB, value), stream)
        arrived.record(stream)
        device.wait(arrived)
        device.launch(lambda: seen.append(slot.mean().item()))
        device.record(freed)
    device.settle()
    assert seen == [1.0, 2.0, 3.0]


def test_another_thread_fills_the_ring_while_this_one_computes(device: SimulatedAccelerator) -> None:
    slots = [touched(device, 4 * MIB) for _ in range(2)]
    arrived, freed = [device.event() for _ in range(8)], [device.event(), device.event()]
    ready, free = threading.Semaphore(0), threading.Semaphore(2)
    stream = device.stream()

    def fetch() -> None:
        for number in range(8):
            free.acquire()
            freed[number % 2].synchronize()
            device.copy_async(slots[number % 2], filled(device, 4 * MIB, float(number)), stream)
            arrived[number].record(stream)
            ready.release()

    fetcher = threading.Thread(target=fetch)
    fetcher.start()
    seen: list[float] = []
    for number in range(8):
        ready.acquire()
        device.wait(arrived[number])
        device.launch(partial(lambda slot: seen.append(slot.mean().item()), slots[number % 2]))
        device.record(freed[number % 2])
        free.release()
        # A real device would compute on its own; this one does when results are needed.
        device.settle()
    device.settle()
    fetcher.join()
    assert seen == [float(number) for number in range(8)]


def test_a_rate_makes_computing_take_at_least_so_long_beside_the_cpu() -> None:
    device = SimulatedAccelerator(Simulation(64 * MIB, 1e9, gpu=1e9))

    def compute() -> float:
        start = time.perf_counter()
        device.launch(lambda: None, nbytes=50 * MIB)
        time.sleep(0.03)  # the CPU's own work
        device.settle()
        return time.perf_counter() - start

    shortest(compute, 50 * MIB / 1e9)
    device.close()


def test_small_copies_cost_the_links_time(device: SimulatedAccelerator) -> None:
    x = torch.ones(5 * MIB)

    def fetch() -> float:
        start = time.perf_counter()
        assert torch.equal(device.to_host(x).result(), x)
        return time.perf_counter() - start

    shortest(fetch, 20 * MIB / 1e9)


def test_after_the_device_is_lost_everything_says_so(slow: SimulatedAccelerator) -> None:
    source, target = slow.pinned(32 * MIB), slow.empty((32 * MIB,), torch.uint8)
    stream, arrived = slow.stream(), slow.event()

    def copy_on() -> None:
        while True:  # a copy takes four seconds, but a busy machine may let the other thread come later still
            slow.copy_async(target, source, stream)
            arrived.record(stream)
            arrived.synchronize()

    threading.Timer(0.01, slow.lose).start()
    with pytest.raises(DeviceLost):
        copy_on()
    calls = [
        slow.memory,
        slow.settle,
        slow.synchronize,
        partial(slow.empty, (1,), torch.uint8),
        partial(slow.pinned, 1),
        partial(slow.copy_async, target, source, stream),
        partial(slow.launch, lambda: None),
    ]
    for call in calls:
        with pytest.raises(DeviceLost):
            call()
    assert slow.memory is not None


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), NotEnoughMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), NotEnoughMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), NotEnoughMemory),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), DeviceLost),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), DeviceLost),
        (RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"), NotEnoughMemory),
        (RuntimeError("Invalid buffer size: 9.00 GiB"), NotEnoughMemory),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x3 and 4x4)"), type(None)),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate 5 bytes."), type(None)),
    ],
)
def test_what_a_cards_errors_mean(error: RuntimeError, meaning: type) -> None:
    failure = failure_of("cuda:0", error)
    assert type(failure) is meaning
    assert not isinstance(failure, NotEnoughMemory) or failure.device == "cuda:0"


def test_an_event_that_was_never_recorded_counts_as_reached(device: SimulatedAccelerator) -> None:
    event = device.event()
    assert event.query()
    event.synchronize()
    device.wait(event)
    device.settle()


@pytest.fixture
def independent() -> Iterator[SimulatedAccelerator]:
    """Return a device with a core of its own."""
    accelerator = SimulatedAccelerator(Simulation(64 * MIB, 1e9, cores=1))
    yield accelerator
    accelerator.close()


def test_a_device_with_cores_of_its_own_computes_beside_the_caller(independent: SimulatedAccelerator) -> None:
    computed = threading.Event()
    independent.launch(computed.set)
    assert computed.wait(120), "nobody has asked for a result"


def test_its_work_waits_for_copies_and_copies_for_its_work(independent: SimulatedAccelerator) -> None:
    """There is a single slot: each copy to it must wait until its previous content has been used."""
    slot, stream = touched(independent, MIB), independent.stream()
    copied, freed, seen = independent.event(), independent.event(), list[float]()
    for number in range(8):
        stream.wait(freed)
        independent.copy_async(slot, filled(independent, MIB, number), stream)
        copied.record(stream)
        independent.wait(copied)
        independent.launch(lambda: seen.extend(slot.unique().tolist()))
        freed.record()
    independent.settle()
    assert seen == [float(number) for number in range(8)]


def test_what_its_thread_fails_with_is_raised_where_results_are_asked_for(independent: SimulatedAccelerator) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    independent.launch(fail)
    with pytest.raises(ZeroDivisionError):
        independent.settle()


def test_an_independent_device_can_be_lost_in_mid_work(independent: SimulatedAccelerator) -> None:
    never_copied, stream = independent.event(), independent.stream()
    independent.copy_async(touched(independent, MIB), filled(independent, MIB, 1.0), stream)
    never_copied.record(stream)
    independent.lose()
    with pytest.raises(DeviceLost):
        independent.launch(lambda: None)
    with pytest.raises(DeviceLost):
        independent.settle()


@pytest.mark.parametrize("cores", [0, 1])
def test_closing_ends_the_threads(cores: int) -> None:
    before = set(threading.enumerate())
    device = SimulatedAccelerator(Simulation(MIB, 1e9, cores=cores))
    device.stream()
    assert set(threading.enumerate()) - before
    device.close()
    assert set(threading.enumerate()) <= before
