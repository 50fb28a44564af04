"""Routers of MoE layers as one call of our library for few rows; each is verified against its own forward.

A router is a module beside an experts module with one vector per expert: as its own parameter, in a linear or, in
Gemma 4, in a linear after a norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_library import MOST_FEW, NativeLibrary, native
from core.kernels.native_router import KINDS, MOST_EXPERTS, NativeRouter, RouterParts, Routing
from core.kernels.quantized_weight import QuantizedWeight
from core.layers import moe
from core.layers.trials import MISFITS, random_rows
from core.offload.hetero_linear import HostLinear

CORRECTION = "e_score_correction_bias"
Passed = tuple[Tensor | None, ...]
"""What a block passes to its router besides the rows: in LFM2, MiniMax M2 and others its correction (experts,)."""
SCALES = ("routed_scaling_factor", "router_scaling_factor")
TRIED_ROWS, TRIED_SIZES = 32, (0.3, 1.0, 3.0)
TRIED_OF_GROUPS = 8
"""Multiple of trial rows for group-limited routing: few rows do not reveal how the best groups are determined."""
NEAR, SAME_ROWS = 0.02, 0.9
"""Largest relative error of a row's shares, and the fraction of rows that must be within it: another order of summation
may swap two nearly equal experts."""


class FusedRouter:
    """The forward of one router: ours for few rows, otherwise its own."""

    def __init__(self, router: Any, compute: NativeRouter, dtype: torch.dtype, passed: Passed) -> None:
        self._own = router.forward
        self.native = compute
        self._dtype = dtype
        self._passed = passed

    def __call__(self, hidden_states: Tensor, *passed: Any, **named: Any) -> Any:
        """(..., K) -> scores, shares and numbers of the chosen experts, by row."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        known = not named and len(passed) == len(self._passed) and all(map(is_, passed, self._passed))
        if not known or x.shape[0] > MOST_FEW or x.dtype is not self._dtype or not x.is_contiguous():
            return self._own(hidden_states, *passed, **named)
        return self.native(x)


def adopt(root: Any) -> None:
    """Replace the forward of all such routers of a loaded tree on the CPU."""
    library = native()
    if library is None or root.dtype not in (torch.float32, torch.bfloat16):
        return
    for router, parts, passed in list(_routers(root)):
        if (compute := _recognised(router, parts, passed, library, root.dtype)) is not None:
            router.forward = FusedRouter(router, compute, root.dtype, passed)


def release(root: nn.Module) -> None:
    """Restore the routers' own forwards."""
    for module in root.modules():
        if isinstance(vars(module).get("forward"), FusedRouter):
            del module.forward


def _routers(root: nn.Module) -> Iterator[tuple[Any, RouterParts, Passed]]:
    """Yield the modules with one vector per expert, beside an experts module that we compute in one call, and what they
    are passed."""
    for block in root.modules():
        counts = {child.num_experts for child in block.children() if moe.TOGETHER in vars(child)}
        for child in block.children() if counts else ():
            parts, passed = _plain(child) or _in_linear(child) or _behind_norm(child), _passed(block, child)
            if parts is None or passed is None or parts.weight.shape[0] not in counts or not _choices(child):
                continue
            yield child, replace(parts, correction=_floats(passed[0])) if passed else parts, passed


def _passed(block: nn.Module, router: nn.Module) -> Passed | None:
    """Return what the block passes to its router; None if that is not known."""
    asked = list(inspect.signature(router.forward).parameters.values())[1:]
    own = {**block._parameters, **block._buffers}
    if any(one.name not in own and one.default is not None for one in asked) or len(asked) > 1:
        return None
    given = tuple(own.get(one.name) for one in asked)
    experts = getattr(router, "num_experts", None)
    return given if all(one is None or one.shape == (experts,) for one in given) else None


def _choices(router: Any) -> int:
    """Return the number of experts per row; 0 = unknown."""
    found = getattr(router, "top_k", getattr(getattr(router, "config", None), "top_k_experts", 0))
    return found if isinstance(found, int) else 0


def _plain(router: Any) -> RouterParts | None:
    """Return the parts of a router that holds the vectors itself; None if it is not one."""
    weight = router._parameters.get("weight")
    corrections = _corrections(router)
    usual = {name for name, _ in _held(router)} <= {"weight", "bias", *corrections} and len(corrections) <= 1
    if not usual or weight is None or weight.dim() != 2 or weight.device.type != "cpu":
        return None
    numbers, bias = _numbers(weight.detach()), _floats(getattr(router, "bias", None))
    return None if numbers is None else RouterParts(numbers, bias, next(iter(corrections.values()), None))


def _held(router: nn.Module) -> list[tuple[str, Tensor]]:
    return [*router.named_parameters(), *router.named_buffers()]


def _corrections(router: nn.Module) -> dict[str, Tensor]:
    """Return the corrections (experts,) by name: ERNIE's is in a module of its own."""
    found = {name: tensor for name, tensor in _held(router) if name.rpartition(".")[2] == CORRECTION}
    return {name: tensor.detach().float().flatten() for name, tensor in found.items()}


def _in_linear(router: Any) -> RouterParts | None:
    """Return the parts of a router that consists of a linear; None if it is not one."""
    children, corrections = list(router.children()), _corrections(router)
    linear = children[0] if len(children) == 1 else None
    if not isinstance(linear, HostLinear) or {name for name, _ in _held(router)} - corrections.keys():
        return None
    if linear.bias is not None or linear.host.weight.order is not None or len(corrections) > 1:
        return None
    return RouterParts(linear.host.weight, correction=next(iter(corrections.values()), None))


def _behind_norm(router: Any) -> RouterParts | None:
    """Return the parts of a router with a norm, scales by column and by expert, and a linear; None if it is not one."""
    children, held = dict(router.named_children()), {name for name, _ in router.named_parameters()}
    proj, eps = children.get("proj"), getattr(router, "eps", None)
    if children.keys() != {"norm", "proj"} or held != {"scale", "per_expert_scale"} or not isinstance(eps, float):
        return None
    root = getattr(router, "scalar_root_size", 1.0)
    if not isinstance(proj, HostLinear) or not isinstance(root, float):
        return None
    if proj.bias is not None or proj.host.weight.order is not None:
        return None
    gain, worth = _floats(router.scale * root), _floats(router.per_expert_scale)
    return RouterParts(proj.host.weight, gain=gain, eps=eps, worth=worth)


@torch.inference_mode()
def _recognised(
    router: Any, parts: RouterParts, passed: Passed, library: NativeLibrary, dtype: torch.dtype
) -> NativeRouter | None:
    """Return our router of the kind that agrees for most rows; other kinds also agree for many. None if none does."""
    experts, columns = parts.weight.shape
    if experts > MOST_EXPERTS:
        return None
    x = _inputs(columns, dtype, TRIED_ROWS * (1 if _groups(router) == 1 else TRIED_OF_GROUPS))
    own = _result(router, x, passed)
    if not (isinstance(own, tuple) and len(own) == 3 and own[1].shape == own[2].shape == (len(x), _choices(router))):
        return None
    expected, best, most = _dense(own[1], own[2], experts), None, SAME_ROWS
    for routing in _candidates(router, dtype, rounded_shares=own[1].dtype is torch.bfloat16):
        ours = NativeRouter(library, routing, parts)
        found = torch.cat([_dense(*ours(part)[1:], experts) for part in torch.split(x, MOST_FEW)])
        near = (found - expected).abs().sum(1) <= NEAR * expected.abs().sum(1)
        near &= ((found != 0) == (expected != 0)).all(1)  # an expert's share may be almost zero
        if (same := float(near.float().mean())) >= most and (best is None or same > most):
            best, most = ours, same
        if most == 1:
            break
    return best


def _result(router: Any, x: Tensor, passed: Passed) -> Any:
    """Return what the router makes of rows (M, K), or of (1, M, K) if it takes only those; None if of neither."""
    for given in (x, x[None]):
        with suppress(*MISFITS):
            return router(given, *passed)
    return None


def _numbers(own: Tensor) -> QuantizedWeight | None:
    """Return a weight in bf16 if that is lossless, otherwise in fp32; None for other types."""
    narrow = own.to(torch.bfloat16).contiguous()
    kept = narrow if torch.equal(narrow.to(own.dtype), own) else own.contiguous()
    rows, columns = own.shape
    return QuantizedWeight("bf16", (rows, columns), kept) if kept.dtype in (torch.bfloat16, torch.float32) else None


def _candidates(router: Any, dtype: torch.dtype, *, rounded_shares: bool) -> Iterator[Routing]:
    scales = {1.0, *(float(getattr(router, name, 1.0) or 1.0) for name in SCALES)}
    groups = _groups(router)
    kept = _number(router, "topk_group") if groups > 1 else 1
    roundings = (True, False) if dtype is torch.bfloat16 else (False,)
    tried = product(KINDS, (True, False), roundings, scales, (2, 1) if groups > 1 else (2,))
    for kind, normed, rounded, scale, best in tried:
        yield Routing(kind, _choices(router), normed, rounded, rounded_shares, scale, groups, kept, best)


def _groups(router: Any) -> int:
    return _number(router, "num_group", "n_group")


def _number(router: Any, *names: str) -> int:
    return next((value for name in names if isinstance(value := getattr(router, name, None), int)), 1)


def _inputs(columns: int, dtype: torch.dtype, rows: int) -> Tensor:
    return random_rows((TRIED_SIZES * rows)[:rows], columns, dtype)


def _dense(shares: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """Return (M, experts): each expert's share, 0 if it is not chosen."""
    return torch.zeros(len(shares), experts).scatter_(1, chosen, shares.float())


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()
