"""Decoder layers that the CPU computes entirely while few rows are processed; a device computes the others.

Splitting each linear of a layer costs one exchange per group of linears, and leaves norms and attention to the device.
A layer without rows on the device is better computed in one piece: its input is copied to the host once for a run of
such layers, and back after the last one. Long prompts still use these layers split like all others.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core.accelerators.base import Accelerator
from core.layers.fused_forward import FusedForward, LayerRun, link
from core.layers.layer_arguments import ANGLES, MASK, SIDE
from core.offload.hetero_linear import SharedInputs


class CpuLayers:
    """The layers that `core.layers.fused_layers` can compute; `use` selects which of them run on the CPU."""

    def __init__(
        self, layers: Sequence[nn.Module], fused: Mapping[int, FusedForward], accelerator: Accelerator,
        inputs: SharedInputs,
    ) -> None:  # fmt: skip
        """`fused`: by layer number."""
        self._layers = layers
        self._fused = fused
        self._luggage = HostActivations(accelerator)
        self._inputs = inputs
        self.runs: list[LayerRun] = []

    def use(self, numbers: Collection[int]) -> None:
        """Run these layers on the CPU from the next pass on, as far as they can be fused, and no others."""
        used = set(numbers) & self._fused.keys()
        self.runs = link({number: self._fused[number] for number in used})
        for number, layer in enumerate(self._layers):
            if number in used:
                layer.forward = CpuForward(self._fused[number], self._luggage, self._inputs, stays=number + 1 in used)
            else:
                vars(layer).pop("forward", None)

    def end_pass(self) -> None:
        """Release the tensors."""
        self._luggage.forget()


class HostActivations:
    """The tensors copied to the host in a pass, each once for all layers that read it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._brought: dict[int, tuple[Tensor, Tensor]] = {}
        self._left: Tensor | None = None

    def on_host(self, x: Tensor) -> Tensor:
        """Return `x` (..., K) on the host, wherever it is now."""
        if x is self._left:
            return x
        if id(x) not in self._brought:
            self._brought[id(x)] = x, self._accelerator.to_host(x).result()
        return self._brought[id(x)][1]

    def on_device(self, x: Tensor) -> Tensor:
        """Return `x` (..., K) on the device; it is copied if it was left on the host."""
        return self._accelerator.to_device(x) if x is self._left else x

    def leave(self, x: Tensor) -> Tensor:
        """Leave `x` (..., K) on the host for the next layer."""
        self._left = x
        return x

    def forget(self) -> None:
        """Release the tensors at the end of a pass."""
        self._brought.clear()
        self._left = None


class CpuForward:
    """The forward of a layer on the CPU. `stays`: the next layer runs there, too."""

    def __init__(self, fused: FusedForward, luggage: HostActivations, inputs: SharedInputs, *, stays: bool) -> None:
        self.__signature__ = inspect.signature(fused.own)  # captured runs name the arguments that come without a name
        self._fused = fused
        self._luggage = luggage
        self._inputs = inputs
        self._stays = stays

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, M, K) -> (1, M, K)."""
        fused, bring, given = self._fused, self._luggage.on_host, self._fused.named(args, kwargs)
        if given is None or not fused.suits(hidden_states, given) or not fused.has_all(hidden_states, given):
            return fused.own(self._luggage.on_device(hidden_states), *args, **kwargs)
        brought: dict[str, Any] = {name: bring(given[name]) for name in (MASK, SIDE) if given.get(name) is not None}
        brought[ANGLES] = tuple(map(bring, given[ANGLES]))
        x = bring(hidden_states)
        start = time.perf_counter()
        y: Tensor = fused(x, **{**given, **brought})
        self._inputs.cpu_s += time.perf_counter() - start
        y = self._luggage.leave(y)
        return y if self._stays else self._luggage.on_device(y)
