"""The engine on a device other than the CPU, through the class that serves all real cards."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.accelerators.capabilities import ordinary
from core.kernels.matmul import host_matmul
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.kernels.torch_products import try_int4, try_int8
from core.model.device_copies import HostEmbedding, Uploads
from core.offload.halves import Halves
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.host_weight import DeviceRows, HostWeight
from core.offload.parameter_manager import Chunk, ParameterManager, SerialCopies, chunks_of, copied_rows
from core.offload.shares import Role
from core.spec import BUCKET_TOKENS, LAYOUTS, LinearPlan, ModelSpec, Plan, Ring, Rows, Storage, cut_columns
from tests.core.families import FAMILIES, RARER_FAMILIES
from tests.core.kernels.test_storages import made
from tests.core.offload.test_hetero_linear import TOKENS, Bench, plan_of
from tests.core.second_device import ABLE, SecondCard, SecondDevice

STORAGES: list[Storage] = ["bf16", "int8", *(storage for storage, layout in LAYOUTS.items() if layout.group)]


def weight_of(storage: Storage, rows: int, columns: int) -> HostWeight:
    if LAYOUTS.get(storage) is not None and LAYOUTS[storage].group:
        return HostWeight(host_matmul(made(storage, rows, columns)[0]))
    return HostWeight(host_matmul(quantize(torch.randn(rows, columns).bfloat16(), storage)))


def thirds(spec: ModelSpec, turn: int, *, kv_on_device: bool, paired: bool = False) -> Plan:
    """Split each linear in three, or leave it to one side, so that every path through a layer occurs."""
    shares = []
    for number, linear in enumerate(spec.linears):
        some, rows = linear.rows // 3, linear.rows
        choices = (Rows(some, some, rows - 2 * some), Rows(rows, 0, 0), Rows(0, rows, 0), Rows(0, rows - some, some))
        shares.append((choices[(number + turn) % len(choices)],) * len(BUCKET_TOKENS))
    return plan_of(spec, shares, kv_on_device, Ring(2, 32768), paired=paired)


@pytest.mark.parametrize("family", [*FAMILIES, *RARER_FAMILIES])
def test_same_tokens_in_every_family(card: SecondCard, tmp_path: Path, family: str) -> None:
    bench = Bench(family, tmp_path)
    first, second = thirds(bench.spec, 0, kv_on_device=True, paired=True), thirds(bench.spec, 1, kv_on_device=False)
    assert bench.run(first, second, card) == bench.expected


def test_what_is_not_elementwise_reads_both_halves(card: SecondCard, tmp_path: Path) -> None:
    """Between gate and down, where the halves otherwise stay on their sides."""
    bench = Bench("llama", tmp_path)
    model, placement, cache = bench.placed(thirds(bench.spec, 0, kv_on_device=True, paired=True), card)
    seen = list[object]()
    for layer in model.module.model.layers:
        layer.mlp.act_fn.register_forward_pre_hook(lambda _, given: seen.append(given[0]) or (given[0].clamp(-9, 9),))
    ids = [*bench.prompt, *bench.expected[:-1]]
    assert model.forward(ids, cache, keep=TOKENS).argmax(-1).tolist() == bench.expected
    assert any(isinstance(one, Halves) for one in seen)
    placement.close()
    card.close()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_same_tokens_without_streams_for_copies(card: SecondCard, tmp_path: Path, family: str) -> None:
    """As on Apple's cards: copies come from ordinary memory, follow launched work, and block."""
    card.can = replace(card.can, streams=False, pinned=ordinary)
    card.told.set(one_stream=1)
    bench = Bench(family, tmp_path)
    first, second = thirds(bench.spec, 0, kv_on_device=True, paired=True), thirds(bench.spec, 1, kv_on_device=False)
    assert bench.run(first, second, card) == bench.expected


@pytest.mark.parametrize("family", ["llama", "bloom", "deepseek_v3"])
def test_states_that_lie_in_ram_from_the_start(card: SecondCard, tmp_path: Path, family: str) -> None:
    """Our attention runs where they lie, models' own attention gets them, and linears multiply cached states."""
    bench = Bench(family, tmp_path)
    first, second = (thirds(bench.spec, turn, kv_on_device=False) for turn in (0, 1))
    assert bench.run(first, second, card) == bench.expected


def test_rows_of_eight_bits_are_multiplied_as_they_lie_where_torch_can(card: SecondCard) -> None:
    """As on Apple and Intel cards: this device has torch's product, but none of our kernels."""
    rows = quantize(torch.randn(49, 200).bfloat16(), "int8")
    products = card.products("int8")
    assert products is not None
    assert products.step == 1
    assert not try_int4(card.device), "a device without the operators"
    assert try_int8(card.device) == list(ABLE.products)
    x = torch.randn(3, 200).bfloat16()
    assert not products.takes(card.to_device(x.float()))
    there = QuantizedWeight("int8", rows.shape, *(card.to_device(part) for part in rows.tensors))
    found = card.to_host(DeviceRows(there, products).linear(card.to_device(x))).result()
    torch.testing.assert_close(found.float(), x.float() @ rows.dequantize(torch.float32).T, rtol=0.02, atol=0.1)


def check_products(card: SecondCard, linear: HeteroLinear, ring: ParameterManager, passes: int) -> None:
    """Compare a split linear's results with those of its whole weight on the host."""
    for _ in range(passes):
        ring.begin_pass(linear.chunks)
        x = torch.randn(2, linear.host.columns)
        expected = linear.host.matmul(HostInput(x), 0, linear.host.rows)
        found = linear(card.to_device(x)).cpu()
        assert (found - expected).norm() < 0.02 * expected.norm()
        linear.inputs.forget()
    ring.close()
    card.synchronize()


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_is_streamed_and_multiplied(card: SecondCard, storage: Storage) -> None:
    """Resident, streamed and CPU rows, cycling through a ring of two buffers."""
    rows, columns = 300, 512
    host = weight_of(storage, rows, columns)
    plan = LinearPlan("one", rows, (Rows(96, 144, rows - 240),) * 4, 0)
    linear = HeteroLinear(host, None, card, SharedInputs(card))
    linear.division = plan.at(1)
    buffer = card.empty((96 * host.row_bytes,), torch.uint8)
    linear.resident = copied_rows(card, card.stream(), host, 0, 96, buffer)
    ring = ParameterManager(card, Ring(2, 40 * host.row_bytes), {"one": [host]})
    linear.streams, linear.chunks = ring, chunks_of(plan, 1, host, 40 * host.row_bytes)
    assert len(linear.chunks) > 3
    check_products(card, linear, ring, passes=4)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_is_divided_by_columns(card: SecondCard, storage: Storage) -> None:
    """Resident, streamed and CPU columns, with the input on the device."""
    rows, columns, unit = 300, 1536, max(64, cut_columns(storage))
    host = weight_of(storage, rows, columns)
    shares = (Rows(2 * unit, unit, columns - 3 * unit),) * 4
    plan = LinearPlan("one", columns, shares, 0, 1, 0)
    linear = HeteroLinear(host, None, card, SharedInputs(card))
    linear.play(Role(by_columns=True))
    linear.division = plan.at(1)
    linear.resident = Uploads(card).rows(host.cut(0, 2 * unit), 0, rows)
    buffer = 40 * host.cut(2 * unit, 3 * unit).row_bytes
    ring = ParameterManager(card, Ring(2, buffer), {"one": [host]})
    linear.streams, linear.chunks = ring, chunks_of(plan, 1, host, buffer)
    assert len(linear.chunks) > 3
    check_products(card, linear, ring, passes=3)


def test_a_slow_link_and_slow_kernels_change_nothing(second: SecondDevice, card: SecondCard, tmp_path: Path) -> None:
    bench = Bench("llama", tmp_path)
    second.set(link=20e6, lag=20e-6)
    first, changed = thirds(bench.spec, 2, kv_on_device=True), thirds(bench.spec, 3, kv_on_device=True)
    assert bench.run(first, changed, card) == bench.expected


def test_the_ring_keeps_its_order_under_many_threads(second: SecondDevice, card: SecondCard) -> None:
    """Restarted passes and skipped chunks, while other threads copy and compute."""
    second.set(link=2e9)
    host = weight_of("bf16", 512, 256)
    plan, stop = LinearPlan("one", 512, (Rows(0, 512, 0),) * 4, 0), threading.Event()
    ring = ParameterManager(card, Ring(3, 32 * host.row_bytes, 2), {"one": [host]})
    failures: list[BaseException] = []

    def disturb() -> None:
        stream, source = card.stream(), card.pinned(1 << 16)
        target = card.empty((1 << 16,), torch.uint8)
        card.synchronize()
        try:
            while not stop.is_set():
                card.copy_async(target, source, stream)
                stream.synchronize()
        except RuntimeError as error:
            failures.append(error)

    others = [threading.Thread(target=disturb) for _ in range(2)]
    for other in others:
        other.start()
    chunks = chunks_of(plan, 1, host, 32 * host.row_bytes)
    for number in range(40):
        taken = chunks if number % 3 else chunks[::2]
        ring.begin_pass(list(chunks) if number % 5 == 0 else chunks)
        for chunk in taken:
            with ring.take(chunk) as rows:
                seen = rows.weight.data.clone()
            assert torch.equal(seen.cpu(), host.weight.data[chunk.begin : chunk.end])
    stop.set()
    for other in others:
        other.join()
    ring.close()
    assert not failures


def busy(card: SecondCard, second: SecondDevice, nbytes: int) -> None:
    """Free memory that a slow kernel still uses: its next owner must wait for the kernel."""
    second.set(lag=0.002)
    card.empty((nbytes,), torch.uint8).fill_(1)


def test_new_memory_is_not_copied_to_before_it_is_free(second: SecondDevice, card: SecondCard) -> None:
    host, uploads = weight_of("bf16", 256, 256), Uploads(card)
    busy(card, second, host.rows * host.row_bytes)
    assert torch.equal(uploads.rows(host, 0, 256).weight.data.cpu(), host.weight.data)
    busy(card, second, host.weight.data.nbytes)
    assert torch.equal(uploads.tensor(host.weight.data).cpu(), host.weight.data)
    busy(card, second, 64 * host.row_bytes)
    ring = ParameterManager(card, Ring(1, 64 * host.row_bytes), {"one": [host]})
    ring.begin_pass([chunk := Chunk("one", 0, 64)])
    with ring.take(chunk) as rows:
        seen = rows.weight.data.clone()
    assert torch.equal(seen.cpu(), host.weight.data[:64])
    ring.close()


def test_tensors_that_come_to_stay_are_there_when_they_are_given(second: SecondDevice, card: SecondCard) -> None:
    second.set(link=20e6)
    numbers = torch.arange(65536.0)
    there = Uploads(card).tensor(numbers)
    assert torch.equal((there + 0).cpu(), numbers)  # on the stream of launched work, which waits for no copy


def test_serial_copies_wait_until_the_buffer_is_free(second: SecondDevice, card: SecondCard) -> None:
    second.set(lag=0.002)
    host = weight_of("bf16", 256, 256)
    serial = SerialCopies(card, Ring(1, 64 * host.row_bytes), {"one": [host]})
    for begin in (0, 64, 128):
        with serial.take(Chunk("one", begin, begin + 64)) as rows:
            seen = rows.weight.data.clone()
        assert begin or torch.equal(seen.cpu(), host.weight.data[:64])
    serial.close()


def test_a_ring_that_is_closed_leaves_nothing_under_way(second: SecondDevice, card: SecondCard) -> None:
    second.set(link=20e6)
    host = weight_of("bf16", 256, 256)
    ring = ParameterManager(card, Ring(2, 64 * host.row_bytes), {"one": [host]})
    first, *others = (Chunk("one", begin, begin + 64) for begin in range(0, 256, 64))
    ring.begin_pass([first, *others])
    while not ring.has_ready(first):
        time.sleep(0.001)  # otherwise it may be closed before it has begun
    ring.close()
    del ring
    gc.collect()
    assert not second.violation()


def test_a_change_of_plan_waits_for_rows_that_are_still_read(
    second: SecondDevice, card: SecondCard, tmp_path: Path
) -> None:
    """Old rows are freed while the last pass may still read them; copies to their memory must wait."""
    bench = Bench("llama", tmp_path)
    second.set(lag=50e-6)
    all_there = [(Rows(linear.rows, 0, 0),) * len(BUCKET_TOKENS) for linear in bench.spec.linears]
    whole = plan_of(bench.spec, all_there, True, Ring())
    assert bench.run(whole, thirds(bench.spec, 1, kv_on_device=True), card) == bench.expected


def test_ids_on_the_device_find_the_table_in_ram(card: SecondCard) -> None:
    table = torch.nn.Embedding(9, 4)
    ids = torch.tensor([[3, 1]])
    assert torch.equal(HostEmbedding(table, card)(card.to_device(ids)).cpu(), table(ids))
