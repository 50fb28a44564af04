"""Mixture-of-experts blocks as one call of our library for few rows; each kind is verified against its own forward.

Such a block has a router and experts that our library computes. It may have a shared expert for every row, and a
single-row linear whose sigmoid gates the shared expert. How a block combines them is found by trying; also whether an
expert's share multiplies what it reads (Llama 4) instead of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_experts import NativeExperts
from core.kernels.native_layer import ACTIVATIONS, NormParts
from core.kernels.native_library import MOST_FEW
from core.kernels.native_mixture import NativeMixture, SharedExpert
from core.kernels.native_router import NativeRouter
from core.layers import experts_beside, moe
from core.layers.fused_experts import FusedExperts
from core.layers.fused_routers import FusedRouter
from core.layers.norms import NativeRMSNorm
from core.layers.trials import MISFITS, function_key, is_like, random_rows, rounds_alike
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

GATED, FUNCTIONS = ("gate_proj", "up_proj", "down_proj"), ("act_fn", "activation_fn")
TRIED_ROWS, TRIED_SIZES = (1, 3), (0.3, 1.0, 3.0)
NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.02}
"""Largest error relative to a row's largest element, by type."""


@dataclass(frozen=True, eq=False)
class Block:
    """The parts of a block.

    `linears`: gate, up and down of the shared expert, and the gate of its result.
    `norms`: before and after the chosen experts, before and after the shared expert.
    """

    router: NativeRouter
    experts: FusedExperts
    linears: Sequence[HostLinear]
    norms: Sequence[NormParts | None] = (None,) * 4

    def shared(self, activation: str) -> SharedExpert | None:
        """Return the shared expert; None if there is none."""
        return SharedExpert(activation, *(one.host.weight for one in self.linears)) if self.linears else None

    def takes(self, rows: int) -> NativeExperts | None:
        """Return the experts' native call for so many rows if our library can compute all parts, otherwise None.

        The library is the one chosen for the experts; the other parts differ little between libraries.
        """
        experts = self.experts.native(rows * self.router.routing.choices)
        if rows > MOST_FEW or experts is None:
            return None
        hosts = [one.host for one in self.linears]
        ours = not hosts or (common_library(hosts, rows) is not None and self._is_alike(experts, rows))
        return experts if ours else None

    def _is_alike(self, experts: NativeExperts, rows: int) -> bool:
        """Return whether gate and up, which are multiplied together, need the same kind of prepared input."""
        return experts.library.alike((one.host.weight.storage for one in self.linears[:2]), rows)


@dataclass(frozen=True)
class Make:
    """The parameters with which ours computes what a kind of block does.

    `pair`: its own forward also returns router scores, which no layer reads. `scaled`: as in `NativeMixture`.
    """

    activation: str
    scaled: bool = False
    pair: bool = False


class FusedMixture:
    """The forward of one block: ours for few rows, otherwise its own."""

    def __init__(self, own: Any, block: Block, make: Make) -> None:
        self.own = own
        self._block = block
        self._make = make
        self._shared = block.shared(make.activation)
        self._made: dict[NativeExperts, NativeMixture] = {}
        self._by_rows = [self._native(rows) for rows in range(1, MOST_FEW + 1)]

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(..., K) -> (..., K)."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        native = None if args or kwargs else self.native(len(x))
        if native is None or x.dtype is not native.dtype or x.device.type != "cpu" or not x.is_contiguous():
            return self.own(hidden_states, *args, **kwargs)
        y = native(x).view(hidden_states.shape)
        return (y, None) if self._make.pair else y

    def native(self, rows: int) -> NativeMixture | None:
        """Return the native call for so many rows; None if there is none."""
        return self._by_rows[rows - 1] if 0 < rows <= MOST_FEW else None

    def _native(self, rows: int) -> NativeMixture | None:
        experts = self._block.takes(rows)
        if experts is not None and experts not in self._made:
            self._made[experts] = NativeMixture(
                self._block.router, experts, self._shared, self._block.norms, scaled=self._make.scaled
            )
        return None if experts is None else self._made[experts]


def adopt(root: Any) -> None:
    """Replace the forward of all such blocks of a loaded tree on the CPU."""
    release(root)
    found: dict[str, Make | None] = {}
    for module in list(root.modules()):
        beside = experts_beside.stand_in(module)
        if (block := _beside(module) if beside else _block(module)) is None:
            continue
        own = experts_beside.ExpertsBeside(module) if beside else module.forward
        kind = function_key(module.modules())
        if kind not in found:
            found[kind] = _make(own, block, root.dtype)
        if (make := found[kind]) is not None:
            vars(module)[experts_beside.TOGETHER if beside else "forward"] = FusedMixture(own, block, make)


def release(root: nn.Module) -> None:
    """Restore the blocks' own forwards."""
    for module in root.modules():
        vars(module).pop(experts_beside.TOGETHER, None)
        if isinstance(vars(module).get("forward"), FusedMixture):
            del module.forward


def _beside(layer: Any) -> Block | None:
    """Return the parts of a layer with experts parallel to its dense MLP; None if one is not ours."""
    router, experts = vars(layer.router).get("forward"), vars(layer.experts).get(moe.TOGETHER)
    linears, norms = _gated(layer.mlp), [getattr(layer, name) for name in experts_beside.NORMS]
    ours = isinstance(router, FusedRouter) and isinstance(experts, FusedExperts) and linears and _may_be_ours(linears)
    if not ours or not all(isinstance(norm, NativeRMSNorm) for norm in norms):
        return None
    return Block(router.native, experts, linears, [norm.parts for norm in norms])


def _block(module: nn.Module) -> Block | None:
    """Return the parts of a block that has only known ones, otherwise None."""
    children = list(module.children())
    routers = [own.native for one in children if isinstance(own := vars(one).get("forward"), FusedRouter)]
    experts = [own for one in children if isinstance(own := vars(one).get(moe.TOGETHER), FusedExperts)]
    shared = [linears for one in children if (linears := _gated(one))]
    doors = [one for one in children if isinstance(one, HostLinear) and one.host.rows == 1]
    known = len(routers) == len(experts) == 1 and len(shared) <= 1 and len(doors) <= len(shared)
    if not known or len(children) != 2 + len(shared) + len(doors):
        return None
    parts = [*chain.from_iterable(shared), *doors]
    return Block(routers[0], experts[0], parts) if _may_be_ours(parts) else None


def _gated(module: nn.Module) -> tuple[Any, ...]:
    """Return the linears of a gated MLP on the CPU; () if it is none."""
    linears = tuple(module._modules.get(name) for name in GATED)
    others = module._modules.keys() - {*GATED, *FUNCTIONS}
    return linears if not others and all(isinstance(one, HostLinear) for one in linears) else ()


def _may_be_ours(linears: Sequence[HostLinear]) -> bool:
    """Return whether the shared expert's weights fit together, without biases."""
    shared = SharedExpert("", *(one.host.weight for one in linears)) if linears else None
    return all(one.bias is None for one in linears) and (shared is None or shared.fit(linears[0].host.columns))


@torch.inference_mode()
def _make(own: Callable[[Tensor], Any], block: Block, dtype: torch.dtype) -> Make | None:
    """Return how ours computes what the block does; None if no way agrees, or if it is not faster for few rows."""
    tried = [rows for rows in TRIED_ROWS if block.takes(rows)]
    try:
        given = [_inputs(block, rows, dtype) for rows in tried]
        made = [own(x) for x in given]
    except MISFITS:
        return None
    pair = any(isinstance(one, tuple) for one in made)
    expected = [one[0] if isinstance(one, tuple) else one for one in made]
    for make in _candidates(block):
        fused = FusedMixture(own, block, make)
        if given and all(map(_agree, map(fused, given), expected)):
            return replace(make, pair=pair)
    return None


def _candidates(block: Block) -> Iterator[Make]:
    single = block.router.routing.choices == 1
    for scaled in (False, True) if single else (False,):
        for activation in ACTIVATIONS if block.linears else ("silu",):
            yield Make(activation, scaled)


def _inputs(block: Block, rows: int, dtype: torch.dtype) -> Tensor:
    native = block.takes(rows)
    assert native is not None, "only numbers of rows that are ours are tried"
    return random_rows(TRIED_SIZES[:rows], native.hidden, dtype)[None]


def _agree(found: Tensor, expected: Tensor) -> bool:
    if not is_like(found, expected):
        return False
    largest = expected.float().abs().amax(-1, keepdim=True)
    near = bool(((found.float() - expected.float()).abs() <= NEAR[found.dtype] * largest).all())
    return near and rounds_alike(found, expected)
