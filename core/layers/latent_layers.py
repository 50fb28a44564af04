"""Multi-head latent attention as one call of our library for few rows, including products, norms and rotary angles.

Families differ in the rotary layout, and in whether queries have a low-rank projection. Such layers are recognised by
their parts' names, and the layout is found by trials. Calls that do not fit (long prompts, packed states, other caches)
go to the layer's own forward, which uses `latent_attention`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from core.kernels.native_heads import NativeHeads
from core.kernels.native_latent import WAYS, Angles, LatentParts, NativeLatent
from core.kernels.native_library import MOST_FEW, NativeLibrary
from core.layers.kv_cache import CACHE_NAMES, cache_argument
from core.layers.kv_layers import PreallocatedLayer
from core.layers.latent_attention import EXPANSION, Expansion
from core.layers.latents import beside
from core.layers.norms import NativeRMSNorm
from core.layers.trials import MISFITS, near
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import common_library

LATENTS, QUERIES = {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}, ("q_a_proj", "q_b_proj")
AT_ONCE, BY_WAY = {"q_proj"}, {*QUERIES, "q_a_layernorm"}
"""The names of the parts; attention with any other part (such as sparse token selection) is not replaced."""
POSITIONS, MASK = "position_embeddings", "attention_mask"
TAKEN = {"hidden_states", POSITIONS, MASK, "kwargs", *CACHE_NAMES}
"""Known arguments of the forward; one with further arguments computes something else."""
TRIED_BEFORE, TRIED_TOKENS = 5, (1, 3)
UNTURNED, *APART, NEIGHBOURS = WAYS
NEAR = {torch.float32: 2e-3, torch.bfloat16: 0.03}
"""Largest error relative to the largest element, by type: quantised weights round elsewhere."""


class FusedLatent:
    """The forward of one layer's attention: ours for few rows after earlier tokens, otherwise its own."""

    def __init__(self, module: Any, one: NativeLatent, few: NativeLatent | None, dtype: torch.dtype) -> None:
        """`one` computes single rows, `few` up to MOST_FEW: the fastest library may differ."""
        self.own = module.forward
        self._one = one
        self._few = few or one
        self._dtype = dtype
        self._most_rows = MOST_FEW if few else 1
        self._index = module.layer_idx
        self._cache_name = cache_argument(module)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, M, K) -> (1, M, K) and None."""
        kept = None if args else self._kept(hidden_states, kwargs)
        rows = None if kept is None else beside(kept.keys, kept.values)
        angles = self._angles(hidden_states, kwargs.get(POSITIONS))
        if kept is None or rows is None or (angles is None and self._one.way != UNTURNED):
            return self.own(hidden_states, *args, **kwargs)
        mask: Tensor | None = kwargs.get(MASK)
        if mask is not None:
            mask = mask[..., : kept.length + hidden_states.shape[1]]
            mask = mask if mask.stride(3) == 1 else mask.contiguous()
        native = self._one if hidden_states.shape[1] == 1 else self._few
        y = native(hidden_states, rows, kept.length, mask, angles)
        kept.length += hidden_states.shape[1]
        return y, None

    def _kept(self, x: Tensor, kwargs: Mapping[str, Any]) -> PreallocatedLayer | None:
        """Return the cache layer of the latents if it is a plain one with room, and x (1, M, K) fits; otherwise
        None."""
        cache, mask, rows = kwargs.get(self._cache_name), kwargs.get(MASK), x.shape[1]
        ours = x.shape[0] == 1 and rows <= self._most_rows and x.dtype is self._dtype and x.is_contiguous()
        known = rows == 1 if mask is None else mask.dtype is torch.bool and mask.shape[1] == 1
        if not (ours and known and isinstance(cache, Cache)):
            return None
        kept = cache.layers[self._index]
        plain = type(kept) is PreallocatedLayer and kept.is_initialized and kept.home is None
        if not plain or kept.keys.device != x.device or kept.dtype is not x.dtype:
            return None
        return kept if kept.length + rows <= kept.keys.shape[2] else None

    def _angles(self, x: Tensor, given: Any) -> Angles | None:
        """Return angles given as cosines and sines of all columns or as complex numbers, for x (1, M, K); otherwise
        None."""
        turned, rows = self._one.sizes.turned, x.shape[1]
        if self._one.way == NEIGHBOURS:
            if not isinstance(given, Tensor) or given.dtype is not torch.complex64 or not given.is_contiguous():
                return None
            parts = torch.view_as_real(given)
            return Angles(parts[..., 0], parts[..., 1], step=2) if given.shape == (1, rows, turned // 2) else None
        if not isinstance(given, tuple) or len(given) != 2:
            return None
        shape, types = (1, rows, turned), (x.dtype, torch.float32)
        fits = all(one.shape == shape and one.dtype in types and one.is_contiguous() for one in given)
        return Angles(*given) if fits else None


def adopt(root: Any) -> None:
    """Replace the forward of all such modules of a loaded tree on the CPU that already defer the expansion."""
    release(root)
    ways: dict[tuple[object, ...], str | None] = {}
    for module in root.modules():
        if not isinstance(vars(module).get(EXPANSION), Expansion) or not _is_known(module):
            continue
        kind = (type(module), module.expand_kv.heads.sizes)
        if kind not in ways:
            ways[kind] = _way(module, root.dtype)
        if (way := ways[kind]) is not None and (fused := _fused(module, way, root.dtype)) is not None:
            module.forward = fused


def release(root: nn.Module) -> None:
    """Restore the modules' own forwards."""
    for module in root.modules():
        if isinstance(vars(module).get("forward"), FusedLatent):
            del module.forward


def _is_known(module: Any) -> bool:
    """Return whether the module has only known parts, and its forward only known arguments."""
    children = dict(module.named_children())
    linears = [child for child in children.values() if isinstance(child, HostLinear)]
    norms = [child for child in children.values() if isinstance(child, NativeRMSNorm)]
    known = children.keys() - LATENTS in (AT_ONCE, BY_WAY) and len(linears) + len(norms) == len(children)
    asked = inspect.signature(module.forward).parameters.keys()
    plain = known and all(one.bias is None for one in linears) and isinstance(getattr(module, "scaling", None), float)
    return plain and asked <= TAKEN and "forward" not in vars(module)


def _fused(module: Any, way: str, dtype: torch.dtype) -> FusedLatent | None:
    """Return our forward for the module; None if our library does not multiply its weights."""
    heads = module.expand_kv.heads
    queries = [module._modules[name] for name in QUERIES if name in module._modules] or [module.q_proj]
    linears = [*queries, module.kv_a_proj_with_mqa, module.o_proj]
    if not isinstance(heads.keys, NativeHeads) or not isinstance(heads.values, NativeHeads):
        return None
    norm = module.q_a_layernorm.parts if len(queries) > 1 else None
    parts = LatentParts(
        heads.sizes, [one.host.weight for one in queries], norm, linears[-2].host.weight, module.kv_a_layernorm.parts,
        heads.keys, heads.values, module.o_proj.host.weight, module.scaling, way,
    )  # fmt: skip
    hosts = [one.host for one in linears]
    one, few = (_native(parts, common_library(hosts, rows), rows) for rows in (1, MOST_FEW))
    return None if one is None else FusedLatent(module, one, few, dtype)


def _native(parts: LatentParts, library: NativeLibrary | None, rows: int) -> NativeLatent | None:
    """Return the call for so many rows by this library; None if it does not take the parts."""
    if library is None or not library.alike((parts.queries[0].storage, parts.latents.storage), rows) or not parts.fit():
        return None
    return NativeLatent(library, parts)


@torch.inference_mode()
def _way(module: Any, dtype: torch.dtype) -> str | None:
    """Return the rotary layout with which ours agrees with the module; None if there is none."""
    turned = module.expand_kv.heads.sizes.turned
    for ways, make in (((UNTURNED, *APART), _pair), ((NEIGHBOURS,), _complex)):
        angles = make(TRIED_BEFORE + sum(TRIED_TOKENS), turned, dtype)
        try:
            expected = _passes(module, module.forward, dtype, angles)
        except MISFITS:  # it takes angles of the other kind
            continue
        finally:
            module.o_proj.inputs.forget()
        for way in ways:
            fused = _fused(module, way, dtype)
            if fused is not None and _agree(_passes(module, fused, dtype, angles), expected, NEAR[dtype]):
                return way
    return None


def _pair(rows: int, turned: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (1, M, turned)."""
    angles = torch.arange(1.0, 1 + rows)[None, :, None] * torch.linspace(0.1, 2, turned // 2).repeat(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _complex(rows: int, turned: int, dtype: torch.dtype) -> Tensor:
    """Return complex numbers (1, M, turned / 2) of the same angles."""
    cos, sin = (one[..., : turned // 2].contiguous() for one in _pair(rows, turned, torch.float32))
    return torch.complex(cos, sin)


def _passes(module: Any, forward: Any, dtype: torch.dtype, angles: Any) -> list[Tensor]:
    """Return the outputs for tokens after others, and the cache's content; the first pass is the module's own."""
    generator = torch.Generator().manual_seed(0)
    cache, name = Cache(layers=[PreallocatedLayer(32) for _ in range(module.layer_idx + 1)]), cache_argument(module)
    made, at = [], 0
    for rows in (TRIED_BEFORE, *TRIED_TOKENS):
        x = torch.randn(1, rows, module.o_proj.host.rows, generator=generator).to(dtype)
        seen = torch.ones(rows, at + rows, dtype=torch.bool).tril(at)[None, None]
        run, own = module.forward if at == 0 else forward, _cut(angles, at, at + rows)
        made.append(run(hidden_states=x, **{POSITIONS: own, MASK: seen, name: cache})[0])
        at += rows
    held = cache.layers[-1]
    return [*made, held.keys[:, :, :at], held.values[:, :, :at]]


def _cut(angles: Any, begin: int, end: int) -> Any:
    cut = (one[:, begin:end].contiguous() for one in (angles if isinstance(angles, tuple) else (angles,)))
    return tuple(cut) if isinstance(angles, tuple) else next(cut)


def _agree(found: list[Tensor], expected: list[Tensor], bound: float) -> bool:
    return all(near(*pair, bound) for pair in zip(found, expected, strict=True))
