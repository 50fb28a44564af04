"""Weights that stay packed as in their files: the same tokens under any split between CPU and card."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.model import gguf_source
from core.model.model_source import open_source
from core.model.spec_cache import specification_of
from core.spec import BUCKET_TOKENS, Ring, Rows
from core.weights.gguf import weights as gguf_weights
from tests.core.greedy import random_prompt
from tests.core.offload.test_hetero_linear import LINK, SECOND, Bench, plan_of, plans
from tests.core.second_device import cannot_build
from tests.core.weights.gguf.tiny_gguf import make_model, write_gguf
from tests.core.weights.stored.packers import FORMATS
from tests.core.weights.stored.tiny_stored import in_fp32, write_stored

KINDS = {kind.name: kind for kind in map(gguf.GGMLQuantizationType, (3, 6))}
"""Q4_1 and Q5_0."""


class PackedBench(Bench):
    """A model with packed linears, computed in fp32 everywhere, so that a split changes no token."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.folder, self.scratch, self.prompt, self.kernels = path, scratch, random_prompt(40), in_fp32()
        source = open_source(path)
        assert source.packed
        self.spec = specification_of(source)
        alone = [(Rows(0, 0, linear.rows),) * len(BUCKET_TOKENS) for linear in self.spec.linears]
        plan = plan_of(self.spec, alone, False, Ring(1, 1024), host_layers=tuple(range(self.spec.layers)))
        self.expected = self.run(plan, plan, SimulatedAccelerator(parse_simulation(LINK)))
        assert len(set(self.expected)) > 5, "a model that repeats itself proves nothing"


STORED = ("gptq", "gptq in order, zero points", "compressed mxfp4", "fp8 in blocks")


@pytest.fixture(scope="module", params=[*KINDS, *STORED])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedBench:
    folder = tmp_path_factory.mktemp("packed")
    if request.param not in KINDS:
        write_stored(folder / "m", FORMATS[request.param])
        return PackedBench(folder / "m", folder)
    with pytest.MonkeyPatch.context() as patch:
        for room in (gguf_source, gguf_weights):
            patch.setattr(room, "main_dtype", lambda _: torch.float32)
        return PackedBench(write_gguf("llama", make_model("llama"), folder / "m.gguf", KINDS[request.param]), folder)


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_same_tokens_under_any_plan(
    bench: PackedBench, data: st.DataObject, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (gguf_source, gguf_weights):
        monkeypatch.setattr(room, "main_dtype", lambda _: torch.float32)
    first, second = data.draw(plans(bench.spec)), data.draw(plans(bench.spec))
    kind = data.draw(st.sampled_from((SECOND, LINK) if not cannot_build() else (LINK,)))
    card = request.getfixturevalue("card") if kind == SECOND else SimulatedAccelerator(parse_simulation(kind))
    assert bench.run(first, second, card) == bench.expected
