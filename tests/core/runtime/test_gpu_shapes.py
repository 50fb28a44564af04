"""Every tensor lies where it is used: entire passes on a card with shapes and devices, but without numbers.

torch's fake tensors know their device without a card, and refuse to mix devices as a real card would. The simulated
card cannot tell: its memory is RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from core.accelerators.base import DeviceEvent, Memory, Stream
from core.kernels.autotune import KernelTable
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.model.placement import DevicePlacement
from core.model.trace import survey
from core.spec import BUCKET_TOKENS, Ring, Rows, Storage
from core.units import GIB
from tests.core.families import FAMILIES, VOCABULARY, make_model
from tests.core.offload.test_hetero_linear import plan_of


class At:
    """An event, a stream and a copy to the host in one: nothing here takes time."""

    def __init__(self, tensor: Tensor | None = None) -> None:
        self._tensor = tensor

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, event: DeviceEvent) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def result(self) -> Tensor:
        assert self._tensor is not None
        return self._tensor


class CardOfShapes:
    """A card whose tensors have shapes only; used in FakeTensorMode."""

    name, simulated, device = "lazy", False, torch.device("lazy")

    def failures(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> Memory:
        return Memory(GIB, GIB, 0, 0)

    def limit(self, cap: int | None) -> None: ...

    def reset_peak(self) -> None: ...

    def release_cached(self) -> None: ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def products(self, storage: Storage) -> None:
        """Return None: weights become floats before they are multiplied."""

    def listed(self, storage: Storage) -> None:
        """Return None: experts are computed weight by weight."""

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def stream(self) -> Stream:
        return At()

    def event(self) -> DeviceEvent:
        return At()

    def copy_async(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        assert dst.nbytes == src.nbytes
        assert dst.is_contiguous()
        assert src.is_contiguous()

    def launch(self, work: Callable[[], object], nbytes: int = 0) -> None:
        work()

    def wait(self, event: DeviceEvent) -> None: ...

    def record(self, event: DeviceEvent) -> None: ...

    def settle(self) -> None: ...

    def to_host(self, tensor: Tensor) -> At:
        return At(tensor.cpu())

    def to_device(self, tensor: Tensor) -> Tensor:
        assert tensor.device.type == "cpu"
        return tensor.to(self.device)

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


def with_known_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what depends on numbers, which fake tensors lack: our own kernels, and the choice of experts."""
    where = torch.where

    def two_tokens(condition: Tensor, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        some = torch.zeros(2, dtype=torch.long, device=condition.device)
        return where(condition, *values) if values else (some,) * condition.ndim

    monkeypatch.setattr("core.layers.attention.native", lambda: None)
    monkeypatch.setattr(torch, "unique", lambda chosen: SimpleNamespace(tolist=lambda: [0, 1]))
    monkeypatch.setattr(torch, "where", two_tokens)


# With the KV cache in RAM: the usual kind, own attention, compressed states, attention sinks.
CASES = [*((family, True) for family in sorted(FAMILIES))]
CASES += [(family, False) for family in ("llama", "falcon", "deepseek_v3", "gpt_oss")]


@pytest.mark.parametrize(("family", "kv_on_device"), CASES)
def test_no_pass_mixes_devices(
    family: str, kv_on_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(family, tmp_path)
    source = open_source(tmp_path)
    spec = survey(source.module, family)
    for _ in fill(source.module, source.weights):
        pass
    weights = HostWeights(source, spec, "bf16", KernelTable(1), tmp_path)
    for _ in weights.make():
        pass
    all_resident = [(Rows(linear.rows, 0, 0),) * len(BUCKET_TOKENS) for linear in spec.linears]
    plan = plan_of(spec, all_resident, kv_on_device, Ring(0, 0))
    with_known_values(monkeypatch)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.no_grad():
        placement = DevicePlacement(source.module, weights, plan, CardOfShapes(), spec.kv_layers)
        list(placement.apply(plan))
        model = LanguageModel(source.module, placement)
        cache = placement.make_cache(source.module.config, plan)
        for ids in ([5] * 12, [6]):
            # Not the method itself: fake tensors do not work with inference mode.
            logits = LanguageModel.forward.__wrapped__(model, ids, cache)  # type: ignore[attr-defined]
            assert logits.shape == (1, VOCABULARY)
