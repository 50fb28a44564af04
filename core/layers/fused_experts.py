"""Experts modules whose chosen experts our library computes in one call, found by trying each kind against the loop.

Whatever a module computes between its two products must be one of the activations that the library knows, with the
module's own numbers; else, and where some rows of an expert lie on a device, `core.layers.moe` goes from one expert to
the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_experts import GATES, PLAIN, Activation, ExpertParts, NativeExperts
from core.kernels.native_library import FEW_ROWS, NativeLibrary
from core.layers import moe
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import HostWeight, common_library

TRIED_SIZES = (0.02, 0.5, 10.0)
"""Of the rows tried: large ones show what is cut off."""
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.02}
"""Of the length of a row of the result, by type: what rounding in other places may change."""
MANY_ROWS = 64


class FusedExperts:
    """The experts of one module: ours where it is faster, else the loop."""

    def __init__(self, native: NativeExperts, experts: int, *, many: bool) -> None:
        """`many`: also where an expert has many rows."""
        self._native = native
        self._experts = experts
        self._many = many

    def suits(self, x: Tensor, chosen: Tensor) -> bool:
        """Whether the library takes this, wherever it lies, and is faster than the loop."""
        few = self._many or chosen.numel() <= FEW_ROWS * self._experts or x.shape[0] <= FEW_ROWS
        plain = x.dtype is self._native.dtype and x.device.type == "cpu" and x.is_contiguous() and len(x) > 0
        return few and plain and chosen.dtype is torch.int64 and chosen.device.type == "cpu"

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x (M, K); chosen and shares (M, k) -> (M, K)."""
        return self._native(x, chosen, shares)


def adopt(root: Any) -> None:
    """Find all such modules in a filled tree whose experts are all on the CPU."""
    found: dict[str, Activation | None] = {}
    for module in root.modules():
        if not moe.linears_of(module) or (library := _library(module)) is None:
            continue
        kind = _kind(module)
        if kind not in found:
            found[kind] = _activation(module, library, root.dtype)
        if (activation := found[kind]) is not None:
            moe.use(module, _fused(module, library, activation, root.dtype))


def _library(module: Any) -> NativeLibrary | None:
    """What multiplies one row and few rows with all of the module's weights, if ours does."""
    up, down = _linears(module)
    if not all(isinstance(one, HostLinear) for one in (*up, *down)):
        return None
    few = common_library(_first_weights(module), FEW_ROWS)
    return None if few is None else common_library(_first_weights(module), 1)


def _linears(module: Any) -> tuple[list[Any], list[Any]]:
    up, down = (moe.linears_of(module)[name] for name in moe.fused_names(module))
    return list(up), list(down)


def _first_weights(module: Any) -> list[HostWeight]:
    """One of each kind: all experts are of one shape and storage, for which the kernels are chosen."""
    return [linears[0].host for linears in _linears(module)]


def _kind(module: Any) -> str:
    """The same for modules that compute the same, whatever their weights."""
    values = ((name, repr(value)) for name, value in vars(module).items() if isinstance(value, moe.PLAIN_VALUES))
    activation = getattr(module, "act_fn", None)
    return repr((type(module).__qualname__, sorted(values), repr(activation)))


def _parts(module: Any, activation: Activation) -> ExpertParts:
    up, down = _linears(module)
    biases = [_stacked([one.bias for one in linears]) for linears in (up, down)]
    weights = [[one.host.weight for one in linears] for linears in (up, down)]
    return ExpertParts(activation, weights[0], weights[1], biases[0], biases[1])


def _stacked(biases: list[Tensor | None]) -> Tensor | None:
    there = [bias for bias in biases if bias is not None]
    return torch.stack(there) if there else None


def _activation(module: Any, library: NativeLibrary, dtype: torch.dtype) -> Activation | None:
    """The one with which ours computes what the module does; None if it computes something else."""
    if getattr(module, "has_post_expert_norm", False):
        return None
    candidates = (one for one in _candidates(module) if _parts(module, one).fit(dtype))
    return next((one for one in candidates if _agrees(module, library, one, dtype)), None)


def _candidates(module: Any) -> Iterator[Activation]:
    if not module.has_gate:
        yield from map(Activation, PLAIN)
        return
    alpha, limit = (float(getattr(module, name, 0.0) or 0.0) for name in ("alpha", "limit"))
    for interleaved in (not module.is_concatenated, bool(module.is_concatenated)):
        for name in GATES:
            if name != "clamped" or limit:
                yield Activation(name, interleaved, alpha, limit)


def _fused(module: Any, library: NativeLibrary, activation: Activation, dtype: torch.dtype) -> FusedExperts:
    native = NativeExperts(library, _parts(module, activation), dtype)
    many = common_library(_first_weights(module), MANY_ROWS) is not None
    return FusedExperts(native, module.num_experts, many=many)


@torch.inference_mode()
def _agrees(module: Any, library: NativeLibrary, activation: Activation, dtype: torch.dtype) -> bool:
    """Whether both compute the same for rows of different sizes."""
    generator = torch.Generator().manual_seed(0)
    choices, columns = min(2, module.num_experts), _first_weights(module)[0].columns
    sizes = torch.tensor(TRIED_SIZES).repeat_interleave(2)[:, None]
    x = (torch.randn(len(sizes), columns, generator=generator) * sizes).to(dtype)
    chosen = torch.rand(len(sizes), module.num_experts, generator=generator).topk(choices).indices
    shares = torch.rand(len(sizes), choices, generator=generator).to(dtype)
    expected = moe.experts_forward(module, x, chosen, shares).float()
    found = _fused(module, library, activation, dtype)(x, chosen, shares).float()
    for linears in _linears(module):
        linears[0].inputs.forget()
    return bool(((found - expected).norm(dim=1) <= NEAR[dtype] * expected.norm(dim=1)).all())
