"""Applies a plan: installs our linears in the module tree, keeps resident rows on the device, and changes both live.

The host copy of every weight stays in place, so evicting rows means freeing them, and promoting rows is one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.accelerators.base import Accelerator
from core.errors import DeviceLost
from core.layers import attention, fused_tree, moe
from core.layers.cpu_layers import CpuLayers
from core.layers.divided_attention import DividedAttentions
from core.layers.expert_cache import ExpertUse
from core.layers.fused_forward import LayerRun
from core.layers.kv_cache import KVCache
from core.layers.kv_heads import ByHeads
from core.layers.kv_layers import Allocate
from core.model.blueprint import decoder_layers
from core.model.captures import Captures
from core.model.device_copies import DeviceCopies, DeviceRest, InPlace, Place, Uploads
from core.model.held_experts import HeldExperts
from core.model.straight_pass import StraightPass, straight_pass
from core.offload.hetero_linear import CopiedHead, HeteroLinear, HostInputs, HostLinear, SharedInputs
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import (
    Chunk,
    ParameterManager,
    SerialCopies,
    Streaming,
    chunks_of,
)
from core.offload.shares import Role
from core.spec import BUCKET_TOKENS, KvLayer, LinearPlan, Plan, bucket

Weights = Mapping[str, Sequence[HostWeight]]
"""The weights of each linear by its name in the plan: one, or one per expert."""


class HostPlacement:
    """Everything on the CPU. `reads_copy`: whether to use a coarse copy of the output head, if there is one."""

    device = torch.device("cpu")
    captures: Captures | None = None

    def __init__(self, module: Any, weights: Weights, *, reads_copy: bool = True) -> None:
        self.reads_copy = reads_copy
        self._module = module
        self._inputs = HostInputs()
        for name, matrices in weights.items():
            put_linears(module, name, matrices, self._make)
        self._heads = [one for one in module.modules() if isinstance(one, CopiedHead)]
        self._layers = decoder_layers(module)
        self.runs = fused_tree.adopt(module, self._layers)
        self.straight = straight_pass(module, self.runs, self._layers)

    def begin_pass(self, tokens: int, *, whole_head: bool = False) -> None:
        """Begin a pass; with `whole_head`, no logits may come from a coarse copy of the output head."""
        for head in self._heads:
            head.whole = whole_head or not self.reads_copy

    def end_pass(self) -> None:
        """Release inputs that linears share within a pass."""
        self._inputs.forget()

    def failures(self) -> AbstractContextManager[None]:
        return nullcontext()

    def make_cache(self, config: Any, plan: Plan) -> KVCache:
        """Return an empty KV cache for this plan."""
        return KVCache(config, plan.context, format=plan.kv)

    def _make(self, weight: HostWeight, bias: Tensor | None) -> HostLinear:
        return (HostLinear if weight.copied is None else CopiedHead)(weight, bias, self._inputs)

    def close(self) -> None:
        """Restore the module tree, except for its linears and norms."""
        fused_tree.release(self._module, self._layers)


class DevicePlacement:
    """Resident and streamed rows on one device, the rest on the CPU."""

    straight: StraightPass | None = None

    def __init__(
        self, module: Any, weights: Weights, plan: Plan, accelerator: Accelerator, kv_layers: Sequence[KvLayer] = (),
        apart: Collection[nn.Module] = (),
    ) -> None:  # fmt: skip
        """Take over from a HostPlacement: install the linears, with all rows on the CPU at first. `apart`: modules that
        are not moved. Raises NotEnoughMemory, DeviceLost; then the linears are installed without any device memory."""
        layers = decoder_layers(module)
        fused = fused_tree.take(module, layers)
        self.accelerator = accelerator
        self.plan = plan
        self._module = module
        self._weights = weights
        self._kv_layers = kv_layers
        self._inputs = SharedInputs(accelerator)
        self._hosted = CpuLayers(layers, fused.layers, accelerator, self._inputs)
        self._attentions = DividedAttentions(accelerator, self._inputs, fused.layers)
        self._uploads = Uploads(accelerator)
        self._residents = InPlace(accelerator, self._uploads) if plan.in_place else self._uploads
        self._parameters: Streaming | None = None
        self._schedules: list[list[Chunk]] = [[] for _ in BUCKET_TOKENS]
        self._bucket = -1
        self._linears: dict[str, list[HeteroLinear]] = {
            name: put_linears(module, name, matrices, self._make) for name, matrices in weights.items()
        }
        self.device = accelerator.device
        self._experts = HeldExperts(module, fused.experts, accelerator, self._inputs, weights)
        self.captures = Captures(module, accelerator)
        try:
            self._upload_biases()
            self._rest = DeviceRest(module, accelerator, self._uploads, apart)
        except BaseException:
            self._leave_linears()
            raise

    def apply(self, plan: Plan) -> Iterator[float]:
        """Change to a plan: evict, then promote; yield the fraction done. Raises NotEnoughMemory, DeviceLost."""
        self.captures.drop()
        self._attentions.use({})
        self._drop_ring()
        self.plan = plan = self._experts.by_whole_ones(plan)
        self._bucket = -1
        self._experts.shrink()
        for linear in self._divided(plan):
            for one in self._linears[linear.name]:
                if not 0 <= _held(one, linear) <= linear.resident:
                    one.resident = None
        self._make_ring()
        for done, linear in enumerate(self._divided(plan), 1):
            self._promote(linear)
            yield done / len(plan.linears)
        self._experts.fill()
        self._assign()
        self._schedules = [self._schedule(tokens) for tokens in BUCKET_TOKENS]
        self._hosted.use(set(plan.host_layers) - self.kv_places(plan).keys())
        self._attentions.use(self._heads(plan))
        self.captures.use(plan)

    @property
    def streams_starved(self) -> bool:
        """Whether the system pinned too little memory for the ring buffer, so that streaming is slower."""
        return self._parameters is not None and self._parameters.starved

    @property
    def runs(self) -> list[LayerRun]:
        """Runs of layers that the CPU computes in one call."""
        return self._hosted.runs

    @property
    def cpu_s(self) -> float:
        """Seconds that the CPU has spent on its rows since the start."""
        return self._inputs.cpu_s

    def begin_pass(self, tokens: int, *, whole_head: bool = False) -> None:
        """Begin a pass over `tokens` new tokens: divide the rows as planned for this many. The head is always whole."""
        if (now := bucket(tokens)) != self._bucket:
            self._bucket = now
            self._divide(now)
        if self._parameters is not None:
            self._parameters.begin_pass(self._schedules[now])
        self._experts.begin_pass(tokens)

    def end_pass(self) -> None:
        """Move results left on the host to the device, and release shared inputs."""
        self._inputs.forget()
        self._hosted.end_pass()
        self._attentions.end_pass()
        self._experts.end_pass()

    def failures(self) -> AbstractContextManager[None]:
        return self.accelerator.failures()

    def copies(self, places: Sequence[Place]) -> DeviceCopies:
        """Copy more tensors to the device, in place of the host's. Raises NotEnoughMemory, DeviceLost."""
        with self.failures():
            return DeviceCopies(places, self._uploads)

    def make_cache(self, config: Any, plan: Plan) -> KVCache:
        """Return an empty KV cache with each layer on its planned device. Raises NotEnoughMemory on first use."""
        return KVCache(config, plan.context, self.kv_places(plan), self.kv_home(config), plan.kv)

    def kv_places(self, plan: Plan) -> dict[int, Allocate]:
        """Return the allocators of the KV cache layers that the plan places on the device, or some heads of them."""
        layers, empty = zip(self._kv_layers, plan.kv_devices, strict=True), self.accelerator.empty
        heads = {module.layer_idx: count for module, count in self._heads(plan).items()}
        places = {number: ByHeads(empty, count) for number, count in heads.items()}
        return {layer.layer: places.get(layer.layer, empty) for layer, gpu in layers if gpu >= 0}

    def kv_home(self, config: Any) -> torch.device | None:
        """Return the device on which a model with its own attention expects all states."""
        return self.device if config._attn_implementation != attention.NAME else None

    def close(self) -> None:
        """Free the device's memory and restore the module tree, except for its linears."""
        self.captures.drop()
        self._drop_ring()
        with suppress(DeviceLost):
            # The host's weights may be freed after this, and launched work may read them in place.
            self.accelerator.synchronize()
        self._hosted.use(())
        self._attentions.use({})
        self._rest.restore()
        self._experts.close()
        self._leave_linears()

    @property
    def expert_use(self) -> ExpertUse | None:
        """Usage counts of the chosen experts of all layers; None if none are held whole."""
        return self._experts.use

    @property
    def expert_uses(self) -> dict[str, list[float]]:
        """How often each expert was used, by the path of its module."""
        return self._experts.uses

    def recall_expert_uses(self, uses: Mapping[str, Sequence[float]]) -> None:
        """Load known usage counts of experts before a plan is applied."""
        self._experts.recall(uses)

    def _divided(self, plan: Plan) -> list[LinearPlan]:
        """Return the linears whose rows are divided: experts may be held whole instead."""
        return [linear for linear in plan.linears if linear.name not in self._experts.names]

    def _heads(self, plan: Plan) -> dict[Any, int]:
        """Return the attention modules that are divided by heads, with the number of KV heads on the device."""
        linears = (linear for linear in plan.linears if linear.heads)
        return {self._module.get_submodule(one.name.rpartition(".")[0]): one.heads for one in linears}

    def _make(self, weight: HostWeight, bias: Tensor | None) -> HeteroLinear:
        return HeteroLinear(weight, bias, self.accelerator, self._inputs)

    def _upload_biases(self) -> None:
        for linears in self._linears.values():
            for linear in linears:
                if linear.host_bias is not None:
                    linear.bias = self._uploads.tensor(linear.host_bias)

    def _leave_linears(self) -> None:
        for linears in self._linears.values():
            for linear in linears:
                linear.resident = None
                linear.bias = linear.host_bias
                linear.host.forget_cuts()

    def _promote(self, plan: LinearPlan) -> None:
        for linear, weight in zip(self._linears[plan.name], self._weights[plan.name], strict=True):
            if _held(linear, plan) == plan.resident:
                continue
            linear.resident = None  # before the new rows, so that both need not fit at once
            if plan.resident and plan.by_columns:
                linear.resident = self._residents.rows(weight.cut(0, plan.resident), 0, weight.rows)
            elif plan.resident:
                linear.resident = self._residents.rows(weight, 0, plan.resident)

    def _make_ring(self) -> None:
        if self.plan.ring.buffers:
            make = SerialCopies if self.plan.strategy == "serial" else ParameterManager
            self._parameters = make(self.accelerator, self.plan.ring, self._weights)
        for linears in self._linears.values():
            for linear in linears:
                linear.streams = self._parameters

    def _drop_ring(self) -> None:
        if self._parameters is not None:
            self._parameters.close()
            self._parameters = None
        for linears in self._linears.values():
            for linear in linears:
                linear.streams = None
                linear.chunks = []

    def _schedule(self, tokens: int) -> list[Chunk]:
        """Return all streamed pieces of one pass in order: all linears of an expert before those of the next expert."""
        chunks: list[Chunk] = []
        for _, together in groupby(computed_order(self.plan.linears), self._owner):
            linears = tuple(together)
            for expert in range(len(self._weights[linears[0].name])):
                for linear in linears:
                    weight = self._weights[linear.name][expert]
                    chunks += chunks_of(linear, tokens, weight, self.plan.ring.bytes, expert)
        return chunks

    def _owner(self, linear: LinearPlan) -> str:
        """Return what is computed as one: a linear, or all experts of a layer."""
        return linear.name if len(self._weights[linear.name]) == 1 else linear.name.rpartition(".")[0]

    def _divide(self, index: int) -> None:
        by_linear: dict[tuple[str, int], list[Chunk]] = {}
        for chunk in self._schedules[index]:
            by_linear.setdefault((chunk.linear, chunk.expert), []).append(chunk)
        for name, linears in self._linears.items():
            for expert, linear in enumerate(linears):
                linear.division = self.plan.by_name[name].shares[index]
                linear.chunks = by_linear.get((name, expert), [])

    def _assign(self) -> None:
        """Let divided linears with the same input be computed together with the first of them, and let those that
        follow such a group consume the two devices' parts of its output."""
        groups: dict[int, list[HeteroLinear]] = {}
        feeding = {plan.after for plan in self.plan.linears if plan.by_columns and not plan.heads}
        for plan in self.plan.linears:
            roles = [Role(by_columns=plan.by_columns)] * len(self._linears[plan.name])
            if plan.group >= 0 and plan.resident < plan.rows and len(roles) == 1 and not plan.by_columns:
                group = groups.setdefault(plan.group, [])
                group.append(self._linears[plan.name][0])
                roles = [Role(group, plan.group in feeding)]
            for linear, role in zip(self._linears[plan.name], roles, strict=True):
                linear.play(role)
                if 0 < (border := plan.rows - plan.decode.cpu) < plan.rows and plan.by_columns:
                    linear.host.copy_columns(border)


def _held(linear: HeteroLinear, plan: LinearPlan) -> int:
    """Return how much of a linear is on the device in the plan's units; -1 if it is divided the other way."""
    if linear.resident is None:
        return 0
    rows, columns = linear.resident.weight.shape
    if plan.by_columns:
        return columns if rows == linear.host.rows else -1
    return rows if columns == linear.host.columns else -1


def computed_order(linears: Sequence[LinearPlan]) -> list[LinearPlan]:
    """Return the linears in the order of a pass: those of one group right after its first."""
    first: dict[int, int] = {}
    for number, linear in enumerate(linears):
        first.setdefault(linear.group, number)
    numbered = sorted(enumerate(linears), key=lambda pair: first[pair[1].group] if pair[1].group >= 0 else pair[0])
    return [linear for _, linear in numbered]


Linear = TypeVar("Linear", bound=nn.Module)


def put_linears(
    root: nn.Module, name: str, weights: Sequence[HostWeight], make: Callable[[HostWeight, Tensor | None], Linear]
) -> list[Linear]:
    """Make our linears for one entry of the plan, each with its bias (N,), and replace the module's own."""
    path, _, leaf = name.rpartition(".")
    owner: Any = root.get_submodule(path)
    if not isinstance(owner._modules.get(leaf), nn.Module):
        biases = getattr(owner, f"{leaf}_bias", None)
        made = [make(weight, None if biases is None else biases[i]) for i, weight in enumerate(weights)]
        moe.put(owner, leaf, made)
        return made
    bias = getattr(owner._modules[leaf], "bias", None)
    linear = make(weights[0], None if bias is None else bias.data)
    owner._modules[leaf] = linear
    return [linear]
