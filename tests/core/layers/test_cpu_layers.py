"""Layers computed by the CPU alone beside a card: fewer exchanges, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.accelerators.card import Card
from core.accelerators.simulated import SimulatedAccelerator
from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.layers.fused_forward import FusedForward
from core.model.placement import DevicePlacement, HostPlacement
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.spec import LinearPlan, Plan, Ring, Rows
from tests.core.families import make_model
from tests.core.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
LAYERS = 4
CARD = "vram=64MiB,link=4GB/s"
PROMPT = [5, 17, 3, 99, 42, 7, 18, 11, 64, 23, 15, 8]


@pytest.fixture(params=["llama", "mistral", "qwen3", "gemma3_text", "qwen3_moe"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoadedModel]:
    """Load a family, including Mistral's window and Gemma's two kinds of positions and masks.

    Tiny differences change the choice of experts, so that bf16 would choose others.
    """
    dtype = torch.float32 if request.param == "qwen3_moe" else torch.bfloat16
    made = make_model(request.param, tmp_path, dtype=dtype, num_hidden_layers=LAYERS)
    options = LoadOptions(format="int8", context=256, threads=1, simulate_gpu=CARD)
    *_, last = load_model(write_tokenizer(made), options)
    assert isinstance(last, LoadedModel)
    yield last
    last.close()


def with_host_layers(loaded: LoadedModel, numbers: tuple[int, ...]) -> Plan:
    """Return a plan with everything on the card except these layers, which are split during prefill."""
    linears = []
    for linear, made in zip(loaded.plan.linears, loaded.spec.linears, strict=True):
        rows = linear.rows
        alone, half = Rows(0, 0, rows), Rows(0, rows // 2, rows - rows // 2)
        there = Rows(rows, 0, 0)
        shares = (alone, alone, half, half) if made.layer in numbers else (there,) * 4
        linears.append(LinearPlan(linear.name, rows, shares, 0, linear.group))
    kv_devices = tuple(-1 if layer.layer in numbers else 0 for layer in loaded.spec.kv_layers)
    ring = Ring(4, 1 << 18)
    return replace(loaded.plan, gpu=0, linears=tuple(linears), kv_devices=kv_devices, host_layers=numbers, ring=ring)


def visits(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Record copies between host and device from now on, in order."""
    device, found = loaded.machine.accelerator(0), list[tuple[str, tuple[int, ...]]]()
    assert isinstance(device, SimulatedAccelerator)
    for name in ("to_host", "to_device"):
        own = getattr(device, name)

        def noted(tensor: Tensor, name: str = name, own: object = own) -> object:
            found.append((name, tuple(tensor.shape)))
            return own(tensor)  # type: ignore[operator]

        monkeypatch.setattr(device, name, noted)
    return found


def answers(loaded: LoadedModel) -> Tensor:
    loaded.cache.reset()
    parts = [PROMPT, [3], [4], PROMPT[:5], [6]]
    return torch.stack([loaded.model.forward(part, loaded.cache)[-1] for part in parts])


def test_a_run_of_layers_is_visited_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.move_to(with_host_layers(loaded, (1, 2)))
    loaded.model.forward(PROMPT, loaded.cache)
    hidden = loaded.spec.hidden
    found = visits(loaded, monkeypatch)
    loaded.model.forward([3], loaded.cache)
    states = [one for one in found if one[1] == (1, 1, hidden)]
    # The model's input comes from the embedding, which lies in RAM.
    assert states == [("to_device", (1, 1, hidden)), ("to_host", (1, 1, hidden)), ("to_device", (1, 1, hidden))]
    kinds = 2 if loaded.source.module.config.model_type == "gemma3_text" else 1
    assert len(found) - len(states) <= 2 * kinds, "the angles of the positions, once for all layers of their kind"


def test_every_choice_of_layers_answers_the_same(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    own = FusedForward.__call__
    monkeypatch.setattr(
        FusedForward, "__call__", lambda self, *args, **kwargs: (used.append(1), own(self, *args, **kwargs))[1]
    )
    loaded.move_to(with_host_layers(loaded, ()))
    expected = answers(loaded)
    assert not used
    for numbers in ((0,), (3,), (0, 1), (1, 3), (0, 1, 2, 3)):
        used.clear()
        loaded.move_to(with_host_layers(loaded, numbers))
        found = answers(loaded)
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
        assert len(used) == 4 * len(numbers), "all passes but the long one"


def test_layers_change_sides_in_mid_conversation(loaded: LoadedModel) -> None:
    loaded.move_to(with_host_layers(loaded, ()))
    expected = answers(loaded)
    loaded.cache.reset()
    found = []
    parts = [PROMPT, [3], [4], PROMPT[:5], [6]]
    for part, numbers in zip(parts, ((), (2, 3), (0,), (0, 1, 2, 3), ()), strict=True):
        loaded.move_to(with_host_layers(loaded, numbers))
        found.append(loaded.model.forward(part, loaded.cache)[-1])
    assert (torch.stack(found) - expected).abs().max() <= 0.02 * expected.abs().max()
    loaded.to_host()
    assert loaded.model.forward([7], loaded.cache).isfinite().all()


@pytest.mark.gpu
def test_a_real_card_leaves_layers_to_the_cpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no card that torch can use")
    options = LoadOptions(format="int8", context=256, threads=1)
    made = make_model("llama", tmp_path, dtype=torch.bfloat16, num_hidden_layers=LAYERS)
    *_, loaded = load_model(write_tokenizer(made), options)
    assert isinstance(loaded, LoadedModel)
    module, device, found = loaded.source.module, Card(torch.device("cuda", 0)), list[Tensor]()
    for numbers in ((), (1, 2), (0, 1, 2, 3)):
        plan = with_host_layers(loaded, numbers)
        HostPlacement(module, loaded.weights)
        placement = DevicePlacement(module, loaded.weights, plan, device, loaded.spec.kv_layers)
        list(placement.apply(plan))
        loaded.model.placement, loaded.cache = placement, placement.make_cache(module.config, plan)
        found.append(answers(loaded))
        placement.close()
    device.close()
    assert all((one - found[0]).abs().max() <= 0.05 * found[0].abs().max() for one in found)
