"""Routers of layers with experts as one call of our library for few rows, found by trying each against its own.

A router is what stands beside an experts module and holds one vector for each expert.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_library import FEW_ROWS, NativeLibrary, native
from core.kernels.native_router import KINDS, MOST_EXPERTS, NativeRouter, RouterParts, Routing
from core.layers import moe
from core.layers.trials import MISFITS

CORRECTION = "e_score_correction_bias"
TRIED_ROWS, TRIED_SIZES = 32, (0.3, 1.0, 3.0)
NEAR, SAME_ROWS = 0.02, 0.9
"""Of a row's shares what may differ, and in how many rows it must be no more: a sum in another order may tip the scales
between two experts."""


class FusedRouter:
    """The forward of one router: ours for few rows, else its own."""

    def __init__(self, router: Any, compute: NativeRouter, dtype: torch.dtype) -> None:
        self._own = router.forward
        self.native = compute
        self._dtype = dtype

    def __call__(self, hidden_states: Tensor) -> Any:
        """(..., K) -> scores, shares and numbers of the chosen experts, by row."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        if x.shape[0] > FEW_ROWS or x.dtype is not self._dtype or not x.is_contiguous():
            return self._own(hidden_states)
        return self.native(x)


def adopt(root: Any) -> None:
    """Replace the forward of all such routers of a filled tree on the CPU."""
    library = native()
    if library is None or root.dtype not in (torch.float32, torch.bfloat16):
        return
    for router, experts in list(_routers(root)):
        if (compute := _recognised(router, experts, library, root.dtype)) is not None:
            router.forward = FusedRouter(router, compute, root.dtype)


def release(root: nn.Module) -> None:
    """Give the routers their own forward back."""
    for module in root.modules():
        if isinstance(vars(module).get("forward"), FusedRouter):
            del module.forward


def _routers(root: nn.Module) -> Iterator[tuple[Any, int]]:
    """What holds a vector for each expert, beside a module with experts that we compute in one call; how many."""
    for block in root.modules():
        counts = {child.num_experts for child in block.children() if moe.TOGETHER in vars(child)}
        for child in block.children():
            weight = child._parameters.get("weight")
            rows = 0 if weight is None or weight.dim() != 2 else weight.shape[0]
            if rows in counts and isinstance(getattr(child, "top_k", None), int) and not list(child.children()):
                yield child, rows


@torch.inference_mode()
def _recognised(router: Any, experts: int, library: NativeLibrary, dtype: torch.dtype) -> NativeRouter | None:
    """Ours, if one of its kinds chooses as the router does."""
    weight = _weight(router)
    held = {name for name, _ in (*router.named_parameters(), *router.named_buffers())}
    plain = held <= {"weight", "bias", CORRECTION} and experts <= MOST_EXPERTS and router.weight.device.type == "cpu"
    # LFM2, MiniMax M2 and others hand the correction over at each call.
    if not plain or weight is None or len(inspect.signature(router.forward).parameters) > 1:
        return None
    x = _inputs(router, dtype)
    try:
        own = router(x)
    except MISFITS:
        return None
    if not (isinstance(own, tuple) and len(own) == 3 and own[1].shape == own[2].shape == (len(x), router.top_k)):
        return None
    bias, correction = (_floats(getattr(router, name, None)) for name in ("bias", CORRECTION))
    expected = _dense(own[1], own[2], experts)
    for routing in _candidates(router, dtype, rounded_shares=own[1].dtype is torch.bfloat16):
        ours = NativeRouter(library, RouterParts(routing, weight, bias, correction))
        found = torch.cat([_dense(*ours(part)[1:], experts) for part in torch.split(x, FEW_ROWS)])
        near = (found - expected).abs().sum(1) <= NEAR * expected.abs().sum(1)
        if float(near.float().mean()) >= SAME_ROWS:
            return ours
    return None


def _weight(router: Any) -> Tensor | None:
    """In bf16 where that loses nothing, else in fp32."""
    own: Tensor = router.weight.detach()
    narrow = own.to(torch.bfloat16).contiguous()
    if torch.equal(narrow.to(own.dtype), own):
        return narrow
    return own.contiguous() if own.dtype is torch.float32 else None


def _candidates(router: Any, dtype: torch.dtype, *, rounded_shares: bool) -> Iterator[Routing]:
    scales = {1.0, float(getattr(router, "routed_scaling_factor", 1.0) or 1.0)}
    groups = _number(router, "num_group", "n_group")
    kept = _number(router, "topk_group") if groups > 1 else 1
    roundings = (True, False) if dtype is torch.bfloat16 else (False,)
    tried = product(KINDS, (True, False), roundings, scales, (2, 1) if groups > 1 else (2,))
    for kind, normed, rounded, scale, best in tried:
        yield Routing(kind, router.top_k, normed, rounded, rounded_shares, scale, groups, kept, best)


def _number(router: Any, *names: str) -> int:
    return next((value for name in names if isinstance(value := getattr(router, name, None), int)), 1)


def _inputs(router: Any, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(TRIED_SIZES).repeat(TRIED_ROWS)[:TRIED_ROWS, None]
    return (torch.randn(TRIED_ROWS, router.weight.shape[1], generator=generator) * sizes).to(dtype)


def _dense(shares: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """(M, experts): the share of each, 0 of those not chosen."""
    return torch.zeros(len(shares), experts).scatter_(1, chosen, shares.float())


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()
