"""Passes of the ring buffer: repeated, not repeated, and in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.kernels.matmul import host_matmul
from core.kernels.quantized_weight import QuantizedWeight
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import Chunk, ParameterManager
from core.spec import Ring

ROWS, EACH = 64, 16
CHUNKS = [Chunk("one", at, at + EACH) for at in range(0, ROWS, EACH)]


@pytest.fixture
def device() -> Iterator[SimulatedAccelerator]:
    made = SimulatedAccelerator(parse_simulation("vram=64MiB,link=12GB/s"))
    yield made
    made.close()


@pytest.mark.parametrize("buffers", [2, 8])
def test_every_pass_gets_its_chunks_whether_or_not_it_is_repeated(device: SimulatedAccelerator, buffers: int) -> None:
    """Also if the last pass, with the same schedule, was not to be repeated: nothing was prefetched then."""
    weight = HostWeight(host_matmul(QuantizedWeight("bf16", (ROWS, 32), torch.randn(ROWS, 32))))
    ring = ParameterManager(device, Ring(buffers, EACH * weight.row_bytes), {"one": [weight]})
    for again in (False, False, True, True, False, False, True):
        ring.begin_pass(CHUNKS, again=again)
        seen: list[torch.Tensor] = []
        for chunk in CHUNKS:
            with ring.take(chunk) as rows:
                device.launch(lambda rows=rows, seen=seen: seen.append(rows.weight.data.clone()))
        device.settle()
        assert torch.equal(torch.cat(seen), weight.weight.data)
    ring.close()
