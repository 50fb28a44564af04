"""Attention divided by heads: a device computes the first KV heads with their queries, the CPU the others.

Both call the model's own forward, each with its rows of the projections to queries, keys and values, its columns of
the output's projection, and its part of the KV cache. Their results are added. So hidden states travel down once and
up once, where a layer's projections would otherwise take two exchanges, and both read the KV cache at the same time.
transformers writes such forwards for any number of heads, because it divides them over several cards likewise.

Long prompts take the divided linears one by one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from core.accelerators.base import Accelerator
from core.layers.cpu_layers import HostActivations
from core.layers.fused_attention import FusedAttention
from core.layers.fused_forward import FusedForward
from core.layers.kv_cache import KVCache
from core.layers.kv_heads import DividedStates
from core.layers.kv_layers import PreallocatedLayer
from core.offload.hetero_linear import HeteroLinear, HostInputs, HostLinear, SharedInputs
from core.spec import FEW, bucket

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections in the order of our library."""


class DividedAttentions:
    """The attention modules of a model that are divided by heads at the moment."""

    def __init__(
        self, accelerator: Accelerator, inputs: SharedInputs, fused: Mapping[int, FusedForward] = MappingProxyType({})
    ) -> None:
        """`fused`: layers that our library can compute on the CPU, by number."""
        by_index = {one.index: one for one in fused.values()}
        self._sides = Sides(accelerator, inputs, HostInputs(), HostActivations(accelerator), by_index)
        self._divided: list[nn.Module] = []

    def use(self, heads: Mapping[nn.Module, int]) -> None:
        """Divide these modules from the next pass on, as their linears are, and no others.

        `heads`: the number of KV heads that each has on the device.
        """
        for module in self._divided:
            vars(module).pop("forward", None)
        self._divided = list(heads)
        for module, count in heads.items():
            module.forward = DividedAttention(module, count, self._sides)

    def end_pass(self) -> None:
        """Release the tensors."""
        self._sides.host_inputs.forget()
        self._sides.activations.forget()


class Sides(NamedTuple):
    """What all divided modules share."""

    accelerator: Accelerator
    inputs: SharedInputs
    host_inputs: HostInputs
    activations: HostActivations
    fused: Mapping[int | None, FusedForward]

    def brought(self, value: Any) -> Any:
        """Return an argument of a forward with its tensors in RAM, each copied once in a pass."""
        if isinstance(value, tuple):
            return tuple(map(self.brought, value))
        return self.activations.on_host(value) if isinstance(value, Tensor) else value


class DividedAttention:
    """The forward of a module with linears that are divided alike, and a KV cache that is divided as they are."""

    def __init__(self, module: nn.Module, heads: int, sides: Sides) -> None:
        linears = {name: one for name, one in module.named_children() if isinstance(one, HeteroLinear)}
        self._own = module.forward
        self._heads = heads
        self._sides = sides
        self._layer = int(module.layer_idx)  # type: ignore[arg-type]
        there = {name: ResidentPart(linear) for name, linear in linears.items()}
        here = {name: _host_part(linear, sides.host_inputs) for name, linear in linears.items()}
        self._there = _with_children(module, there)
        self._here = _with_children(_in_ram(module), here)
        self._fused = _fused(sides.fused.get(self._layer), here)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, M, K) -> (1, M, K), on the device."""
        name = next((key for key, given in kwargs.items() if isinstance(given, KVCache)), "")
        rows = hidden_states[..., 0].numel()
        if args or not name or bucket(rows) > FEW or not self._is_divided(kwargs[name].layers[self._layer]):
            return self._own(hidden_states, *args, **kwargs)
        layer: PreallocatedLayer = kwargs[name].layers[self._layer]
        there, here = _both_sides(layer, rows)
        # The device has its work before the CPU starts.
        accelerator = self._sides.accelerator
        brought = accelerator.to_host(hidden_states)
        arguments = {key: self._sides.brought(one) for key, one in kwargs.items()}
        y, *more = self._there.forward(hidden_states, **kwargs | {name: there})
        rest = self._on_host(brought.result(), here, name, arguments)
        layer.length += rows
        return y + accelerator.to_device(rest), *more

    def _on_host(self, x: Tensor, side: OneSide, name: str, arguments: Mapping[str, Any]) -> Tensor:
        """Compute the CPU's part for x (1, M, K). `name`: the argument for the cache."""
        start = time.perf_counter()
        if self._fused is not None and self._fused.suits(x, arguments):
            y = self._fused(x, side, arguments)
        else:
            y = self._here.forward(x, **{**arguments, name: side})[0]
        self._sides.inputs.cpu_s += time.perf_counter() - start
        return y

    def _is_divided(self, layer: Any) -> bool:
        """Return whether a layer's KV cache holds tokens, divided as this module's linears are."""
        held = isinstance(layer, PreallocatedLayer) and layer.is_initialized
        return held and isinstance(layer.keys, DividedStates) and layer.keys.there.shape[1] == self._heads


@dataclass(frozen=True)
class OneSide:
    """One layer's KV cache as one side sees it: `keys` and `values` (1, H, capacity, D) of its heads.

    `first`: the index of the first token that attention sees; `start`: of the first new one.
    """

    keys: Tensor
    values: Tensor
    first: int
    start: int

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states (1, H, M, D) of the new tokens; return all that are seen."""
        new, seen = (slice(begin, self.start + keys.shape[2]) for begin in (self.start, self.first))
        self.keys[:, :, new], self.values[:, :, new] = keys, values
        return self.keys[:, :, seen], self.values[:, :, seen]


def _both_sides(layer: PreallocatedLayer, rows: int) -> tuple[OneSide, OneSide]:
    """Return both sides of a divided layer, with room for so many new tokens."""
    first, start = layer.make_room(rows)
    keys, values = layer.keys, layer.values
    return OneSide(keys.there, values.there, first, start), OneSide(keys.here, values.here, first, start)


class ResidentPart(nn.Module):
    """The resident rows or columns of a divided linear as a linear of their own."""

    def __init__(self, linear: HeteroLinear) -> None:
        super().__init__()
        assert linear.resident is not None
        self._linear = [linear]  # in a list, so as not to become a child
        self._bias = None if linear.bias is None else linear.bias[: linear.resident.rows]

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., n), on the device."""
        return self._linear[0].resident_product(x, self._bias)


def _host_part(linear: HeteroLinear, inputs: HostInputs) -> HostLinear:
    """Return the other rows or columns as a linear in RAM; the bias of a linear divided by columns is the device's."""
    host, resident = linear.host, linear.resident
    assert resident is not None
    if linear.role.by_columns:
        return HostLinear(host.cut(resident.weight.shape[1], host.columns), None, inputs)
    bias = None if linear.host_bias is None else linear.host_bias[resident.rows :]
    return HostLinear(host.after(resident.rows), bias, inputs)


def _fused(fused: FusedForward | None, parts: Mapping[str, HostLinear]) -> FusedAttention | None:
    """Return the CPU's heads of a layer that our library computes."""
    if fused is None or parts.keys() != {*ORDER}:
        return None
    ordered = [parts[name] for name in ORDER]
    return FusedAttention(fused, [one.host.weight for one in ordered], [one.bias for one in ordered])


def _with_children(module: nn.Module, children: Mapping[str, nn.Module]) -> Any:
    """Return a module that shares everything with this one but these children."""
    made = copy.copy(module)
    made._modules = {**module._modules, **children}
    vars(made).pop("forward", None)
    return made


def _in_ram(module: nn.Module) -> nn.Module:
    """Return a copy of a module tree, except its divided linears, with all tensors in RAM."""
    made = copy.copy(module)
    for name in ("_parameters", "_buffers"):
        held: dict[str, Any] = getattr(module, name)
        setattr(made, name, {key: None if one is None else one.detach().cpu() for key, one in held.items()})
    made._modules = {name: _own_copy(child) for name, child in module._modules.items()}
    return made


def _own_copy(child: nn.Module | None) -> nn.Module | None:
    return child if child is None or isinstance(child, HeteroLinear) else _in_ram(child)
