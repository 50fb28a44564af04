"""A real card fulfils the same contract as the simulated one. Run with `-m gpu`."""

import gc
from collections.abc import Iterator

import pytest
import torch

from core.accelerators.card import Card
from core.errors import NotEnoughMemory
from core.units import GIB, MIB

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> Iterator[Card]:
    if not torch.cuda.is_available():
        pytest.skip("no card that torch can use")
    accelerator = Card(torch.device("cuda", 0))
    yield accelerator
    accelerator.limit(None)
    accelerator.close()


def test_memory_is_counted_and_given_back(device: Card) -> None:
    before = device.memory()
    tensor = device.empty((64 * MIB,), torch.uint8)
    assert device.memory().used == before.used + 64 * MIB
    assert 0 < device.memory().free < device.memory().total
    del tensor
    assert device.memory().used == before.used


def test_the_cap_holds(device: Card) -> None:
    device.release_cached()
    device.limit(device.memory().used + 256 * MIB)
    with pytest.raises(NotEnoughMemory) as raised:
        device.empty((GIB,), torch.uint8)
    assert raised.value.device == "cuda:0"
    device.limit(None)
    assert device.empty((GIB,), torch.uint8).nbytes == GIB


def test_more_than_the_card_has_is_refused(device: Card) -> None:
    with pytest.raises(NotEnoughMemory, match="were needed"):
        device.empty((device.memory().total * 2,), torch.uint8)


def test_exactly_what_is_asked_for_is_locked(device: Card) -> None:
    buffer = device.pinned(33 * MIB + 1)
    assert buffer.nbytes == 33 * MIB + 1
    assert buffer.is_pinned()
    address = buffer.data_ptr()
    del buffer
    gc.collect()
    # After release the same pages can be pinned again.
    again = [device.pinned(33 * MIB + 1) for _ in range(3)]
    assert all(one.is_pinned() for one in again)
    assert address


def test_copies_arrive_on_a_stream_of_their_own(device: Card) -> None:
    source = device.pinned(48 * MIB).view(torch.float32).fill_(3.0)
    target, back = device.empty((12 * MIB,), torch.float32), device.pinned(48 * MIB).view(torch.float32)
    stream, arrived = device.stream(), device.event()
    assert arrived.query()
    device.copy_async(target, source, stream)
    arrived.record(stream)
    device.wait(arrived)
    total = device.empty((1,), torch.float32)
    device.launch(lambda: torch.sum(target[:1000], dim=0, keepdim=True, out=total))
    freed = device.event()
    device.record(freed)
    stream.wait(freed)
    device.copy_async(back, target, stream)
    stream.synchronize()
    assert total.item() == 3000.0
    assert torch.equal(back, source)


def test_quantised_copies_keep_every_byte(device: Card) -> None:
    source = torch.randint(0, 255, (5 * MIB + 3,), dtype=torch.uint8)
    target, stream = device.empty(source.shape, torch.uint8), device.stream()
    device.copy_async(target, source, stream)
    stream.synchronize()
    assert torch.equal(target.cpu(), source)


def test_small_results_go_both_ways(device: Card) -> None:
    x = torch.randn(3, 4096, dtype=torch.bfloat16)
    on_device = device.to_device(x)
    copy = device.to_host(on_device * 2)
    assert torch.equal(copy.result(), x * 2)


def test_this_card_is_measured() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no card that torch can use")
    from core.hardware.benchmark import measure_cpu, measure_gpu

    device = Card(torch.device("cuda", 0))
    rates = measure_gpu(device, measure_cpu())
    device.close()
    assert rates.link.h2d_pinned > 1e9
    assert rates.link.staged < 1.2 * rates.link.h2d_pinned
    assert rates.bytes_s > 5 * rates.link.h2d_pinned
    assert 1e-7 < rates.link.sync_s < 0.01
    print(rates)
