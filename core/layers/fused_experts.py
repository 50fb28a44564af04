"""Experts modules whose chosen experts our library computes in one call; each kind is verified against the loop.

The function between a module's two products must be one of the library's activations, with the module's own constants.
Otherwise, or if rows of an expert lie on a device, `core.layers.moe` loops over the experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_experts import GATES, PLAIN, Activation, ExpertParts, NativeExperts
from core.kernels.quantized_weight import QuantizedWeight
from core.layers import moe
from core.layers.trials import function_key
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import HostWeight, common_library
from core.spec import BUCKET_TIMED, bucket

TRIED_SIZES = (0.02, 0.5, 10.0)
"""Scales of the trial rows: large ones show clipping."""
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.02}
"""Largest error relative to the norm of a result row, by type: from rounding at other places."""


class FusedExperts:
    """The experts of one module: computed by our library if it is faster, otherwise by the loop."""

    def __init__(self, by_bucket: Sequence[NativeExperts | None], experts: int) -> None:
        """`by_bucket`: the native call by rows per expert, as the fastest library may differ; None if the loop is
        faster."""
        self.dtype = next(native.dtype for native in by_bucket if native is not None)
        self._by_bucket = by_bucket
        self._experts = experts

    def suits(self, x: Tensor, chosen: Tensor) -> bool:
        """Return whether the library takes x (M, K) and chosen (M, k), and is faster than the loop."""
        native = self.native(chosen.numel())
        plain = x.device.type == "cpu" and x.is_contiguous() and len(x) > 0
        plain = plain and chosen.dtype is torch.int64 and chosen.device.type == "cpu"
        return plain and native is not None and x.dtype is native.dtype

    def with_weights(self, up: Sequence[QuantizedWeight], down: Sequence[QuantizedWeight]) -> FusedExperts:
        """Return the same for copies of the weights elsewhere in RAM."""
        kinds = [native for native in self._by_bucket if native is not None]
        made = {native: native.with_weights(up, down) for native in dict.fromkeys(kinds)}
        by_bucket = [None if native is None else made[native] for native in self._by_bucket]
        return FusedExperts(by_bucket, self._experts)

    def takes(self, chosen: Tensor) -> bool:
        """Return whether the library is faster for the rows per expert of chosen (M, k)."""
        return self.native(chosen.numel()) is not None

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x (M, K); chosen and shares (M, k) -> (M, K)."""
        native = self.native(chosen.numel())
        assert native is not None, "only what suits is computed"
        return native(x, chosen, shares)

    def native(self, pairs: int) -> NativeExperts | None:
        """Return the native call for so many pairs of row and expert; None if the loop is faster."""
        return self._by_bucket[bucket(-(-pairs // self._experts))]


def adopt(root: Any) -> None:
    """Fuse all modules of a loaded tree whose experts are entirely on the CPU and agree with ours."""
    found: dict[str, Activation | None] = {}
    for module in root.modules():
        if not moe.linears_of(module) or not _is_ours(module):
            continue
        kind = _kind(module)
        if kind not in found:
            found[kind] = _activation(module, root.dtype)
        if (activation := found[kind]) is not None:
            moe.use(module, _fused(module, activation, root.dtype))


def take(root: Any) -> dict[Any, FusedExperts]:
    """Return the fused experts by module; they keep their weights, whatever linears are put in."""
    found = {module: vars(module).get(moe.TOGETHER) for module in root.modules()}
    return {module: fused for module, fused in found.items() if isinstance(fused, FusedExperts)}


def _is_ours(module: Any) -> bool:
    """Return whether all weights are on the host, and our library multiplies single rows with them."""
    up, down = _linears(module)
    whole = all(isinstance(one, HostLinear) for one in (*up, *down))
    return whole and common_library(_first_weights(module), 1) is not None


def _linears(module: Any) -> tuple[list[Any], list[Any]]:
    up, down = (moe.linears_of(module)[name] for name in moe.fused_names(module))
    return list(up), list(down)


def _first_weights(module: Any) -> list[HostWeight]:
    """Return one weight of each linear: all experts have the same shape and storage, by which kernels are chosen."""
    return [linears[0].host for linears in _linears(module)]


def _kind(module: Any) -> str:
    """Return a key that is equal for modules that compute the same function, whatever their weights."""
    return function_key([module]) + repr(getattr(module, "act_fn", None))


def _parts(module: Any, activation: Activation) -> ExpertParts:
    up, down = _linears(module)
    biases = [_stacked([one.bias for one in linears]) for linears in (up, down)]
    weights = [[one.host.weight for one in linears] for linears in (up, down)]
    return ExpertParts(activation, weights[0], weights[1], biases[0], biases[1])


def _stacked(biases: list[Tensor | None]) -> Tensor | None:
    there = [bias for bias in biases if bias is not None]
    return torch.stack(there) if there else None


def _activation(module: Any, dtype: torch.dtype) -> Activation | None:
    """Return the activation with which ours agrees with the module; None if there is none."""
    if getattr(module, "has_post_expert_norm", False):
        return None
    candidates = (one for one in _candidates(module) if _parts(module, one).fit(dtype))
    return next((one for one in candidates if _agrees(module, one, dtype)), None)


def _candidates(module: Any) -> Iterator[Activation]:
    if not module.has_gate:
        yield from map(Activation, PLAIN)
        return
    alpha, limit = (float(getattr(module, name, 0.0) or 0.0) for name in ("alpha", "limit"))
    for interleaved in (not module.is_concatenated, bool(module.is_concatenated)):
        for name in GATES:
            if name != "clamped" or limit:
                yield Activation(name, interleaved, alpha, limit)


def _fused(module: Any, activation: Activation, dtype: torch.dtype) -> FusedExperts:
    libraries = [common_library(_first_weights(module), rows) for rows in BUCKET_TIMED]
    parts = _parts(module, activation)
    natives = {one: NativeExperts(one, parts, dtype) for one in libraries if one is not None}
    return FusedExperts([None if one is None else natives[one] for one in libraries], module.num_experts)


@torch.inference_mode()
def _agrees(module: Any, activation: Activation, dtype: torch.dtype) -> bool:
    """Return whether both compute the same for rows of different scales."""
    generator = torch.Generator().manual_seed(0)
    choices, columns = min(2, module.num_experts), _first_weights(module)[0].columns
    sizes = torch.tensor(TRIED_SIZES).repeat_interleave(2)[:, None]
    x = (torch.randn(len(sizes), columns, generator=generator) * sizes).to(dtype)
    chosen = torch.rand(len(sizes), module.num_experts, generator=generator).topk(choices).indices
    shares = torch.rand(len(sizes), choices, generator=generator).to(dtype)
    expected = moe.experts_forward(module, x, chosen, shares).float()
    fused = _fused(module, activation, dtype)
    # If the loop is faster for so many rows per expert, ours is tried row by row.
    step = len(x) if fused.takes(chosen) else 1
    runs = (slice(start, start + step) for start in range(0, len(x), step))
    found = torch.cat([fused(x[run], chosen[run], shares[run]) for run in runs]).float()
    for linears in _linears(module):
        linears[0].inputs.forget()
    return bool(((found - expected).norm(dim=1) <= NEAR[dtype] * expected.norm(dim=1)).all())
