"""Attention as called by transformers' layers: our compiled kernels on the CPU, torch elsewhere.

    attend -> few rows on the CPU           -> our compiled kernel, which reads each key and value once
           -> the same, compressed (MLA)    -> the same over the latents, between products with each head's weights
           -> many rows on the CPU          -> our compiled kernel for prompts, if each row sees adjacent keys
           -> divided by heads              -> each part where its keys and values lie
           -> soft caps or sinks elsewhere  -> plain torch, some query rows at a time
           -> all else                      -> scaled_dot_product_attention

Independent of models: `register` puts it under a name that a model's config can carry. Masks are those of sdpa.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.kernels import native_prompt
from core.kernels.native_latent import LEAST_LATENTS
from core.kernels.native_library import MOST_FEW, AttentionCall, native
from core.kernels.packed_states import Stored, as_stored
from core.kernels.packed_width import PACKED
from core.layers.kv_heads import DividedStates
from core.layers.latents import Latents, LatentStates
from core.startup.torch_stubs import bare_torch

with bare_torch():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

NAME = "hetegen"
MOST_SHARED_ROWS = 64
"""Up to this many query rows per KV head, the time is that of reading the keys rather than of multiplying them."""
ONLY_BY_TORCH = ("position_bias", "cache")
"""Arguments of transformers' attention that ours does not take."""
FEW_QUERIES = 16
"""Up to this many query rows, the rows of heads that share keys are laid together."""
QUERY_CHUNK = 128
"""Number of query rows for which plain torch holds all scores at once."""


class Asked(NamedTuple):
    """Query (B, H, S, D) with the mask of the keys that it sees, and how scores are made: see `attend`."""

    query: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None
    sinks: Tensor | None

    def call(self, keys: Stored, values: Stored) -> AttentionCall:
        """Make the kernel's arguments for these keys and values."""
        sinks = None if self.sinks is None else self.sinks.float().contiguous()
        return call_for(self.query, keys, values, self.mask, sinks, self.scale, self.softcap or 0.0)


def register() -> str:
    """Register the function with transformers; return the name for `attn_implementation`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, S, D), key and value (B, KVH, T, D), in any form that caches return -> ((B, S, H, D), None).

    The mask is as made by `sdpa_mask`: (B, 1, S, T), True where a key is seen, None = causal where S > 1. `softcap`
    bounds scores by tanh; `s_aux` (H,) is the logit of a key without value ("sink") for each head.
    """
    if isinstance(key, LatentStates):
        latents, plain = key.latents, softcap is None and s_aux is None and not dropout
        if plain and latents_suit(latents, query, attention_mask):
            return attend_latents(latents, query, attention_mask, scaling), None
        key, value = latents.expanded
    if isinstance(key, DividedStates):
        return _attend_by_heads(module, query, key, value, attention_mask, (dropout, scaling, softcap, s_aux), kwargs)
    keys, values = as_stored(key), as_stored(value)
    if (home := keys.rows.device) != query.device:
        # This layer's KV cache lies elsewhere. Its states are far larger than the query, so the query is copied.
        mask, sinks = (None if one is None else one.to(home) for one in (attention_mask, s_aux))
        there, _ = attend(module, query.to(home), key, value, mask, dropout, scaling, softcap, sinks, **kwargs)
        return there.to(query.device), None
    if dropout or any(kwargs.get(name) is not None for name in ONLY_BY_TORCH):
        floats = keys.floats(query.dtype, mixed=True), values.floats(query.dtype, mixed=False)
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, *floats, attention_mask, dropout=dropout, scaling=scaling, softcap=softcap, **kwargs
        )
        return out
    causal = attention_mask is None and query.shape[2] > 1 and _is_causal(module, kwargs)
    scale, library = query.shape[-1] ** -0.5 if scaling is None else scaling, native()
    asked = Asked(query, attention_mask, scale, softcap, s_aux)
    if library is not None and not causal and suits(query, keys, values, attention_mask):
        return library.attention(asked.call(keys, values)), None
    return _attend_floats(asked, keys, values, causal=causal), None


def _attend_floats(asked: Asked, keys: Stored, values: Stored, *, causal: bool) -> Tensor:
    """Compute (B, S, H, D) of many query rows, or of what the kernel for few does not take."""
    query = asked.query
    key, value = keys.floats(query.dtype, mixed=True), values.floats(query.dtype, mixed=False)
    if causal:
        # As in sdpa: without a mask, keys beyond the last query are the unused end of a static cache.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    found = None if native() is None else _attend_many(asked, key, value, causal=causal)
    if found is not None:
        return found
    is_plain_row = query.shape[2] == 1 and asked.softcap is None and asked.sinks is None
    if asked.mask is None and not causal and not is_plain_row:
        asked = asked._replace(mask=_all_seen(query, key))
    return _attend_by_torch(asked, key, value)


def _attend_by_heads(
    module: nn.Module, query: Tensor, key: DividedStates, value: DividedStates, mask: Tensor | None,
    scaling: Sequence[Any], options: Mapping[str, Any],
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute `attend` of states divided by heads, all of which are plain; the device has its work before the CPU."""
    border, home = query.shape[1] // key.shape[1] * key.there.shape[1], key.here.device
    own_query, own_mask = query[:, border:].to(home), None if mask is None else mask.to(home)
    first, _ = attend(module, query[:, :border], key.there, value.there, mask, *scaling, **options)
    rest, _ = attend(module, own_query, key.here, value.here, own_mask, *scaling, **options)
    return torch.cat((first, rest.to(query.device)), 2), None


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


# ---- few query rows


def suits(query: Tensor, keys: Stored, values: Stored, mask: Tensor | None) -> bool:
    """Return whether the compiled kernel takes query (B, H, S, D), keys and values of T tokens, and is faster."""
    key, value = keys.rows, values.rows
    shared = query.shape[1] // key.shape[1] * query.shape[2]
    plain = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    same = (
        key.dtype == value.dtype
        and key.dtype in (query.dtype, PACKED)
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
    )
    typed = keys.recent is None or keys.recent.dtype is query.dtype
    masked = mask is None or (mask.dtype is torch.bool and mask.shape[1] == 1)
    real = type(query) is Tensor  # meta tensors have no memory
    return real and plain and same and typed and masked and shared <= MOST_SHARED_ROWS


def call_for(
    query: Tensor, keys: Stored, values: Stored, mask: Tensor | None, sinks: Tensor | None, scale: float,
    softcap: float = 0.0,
) -> AttentionCall:  # fmt: skip
    """Make the kernel's arguments for query (B, H, S, D), with the part of a mask (B, 1, S, T) that it needs."""
    recent = None if keys.recent is None or values.recent is None else (keys.recent, values.recent)
    part = seen(mask, query, keys.rows)
    return AttentionCall(query, keys.rows, values.rows, part, sinks, scale, softcap, recent)


def seen(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Return the part (B, 1, S, T) of the mask for these queries and keys, as the compiled kernel takes it."""
    if mask is None:
        return None
    part = mask[..., : key.shape[2]].expand(query.shape[0], 1, query.shape[2], key.shape[2])
    return part if part.stride(3) == 1 else part.contiguous()


# ---- few query rows over compressed keys and values


def latents_suit(latents: Latents, query: Tensor, mask: Tensor | None) -> bool:
    """Return whether it is better to project query (1, H, M, D) to the latents than to expand every token's latents."""
    rows, library = query.shape[2], native()
    plain = type(query) is Tensor and query.dtype is latents.heads.dtype and query.stride(3) == 1
    masked = rows == 1 if mask is None else mask.dtype is torch.bool and mask.shape[1] == 1
    return plain and masked and rows <= MOST_FEW and library is not None


def attend_latents(latents: Latents, query: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Compute (1, M, H, value), on the query's device: every head sees the same latents, as keys and values at once.

    The CPU multiplies with the heads' weights, wherever the latents lie, because it holds them entirely.
    """
    scale, keys = query.shape[-1] ** -0.5 if scaling is None else scaling, latents.side_by_side
    values, q = keys[..., : latents.heads.sizes.rank], latents.heads.queries(query.cpu())
    seen_part = _attended(q, keys, values, mask, scale)
    return latents.heads.results(seen_part.cpu()).to(query.device)


def _attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute (1, M, H, V) where keys (1, 1, T, D) and values (1, 1, T, V) lie, for query (1, H, M, D) in RAM."""
    there, library = None if mask is None else mask.to(keys.device), native()
    if keys.device.type == "cpu" and library is not None:
        call = call_for(query, Stored(keys), Stored(values), there, None, scale)
        return library.attention(replace(call, least_keys=LEAST_LATENTS))
    rows = query.to(keys.device).flatten(1, 2)
    scores = ((rows @ keys[0].transpose(1, 2)).float() * scale).view(*query.shape[:3], -1)
    if there is not None:
        scores = scores.masked_fill(~there[..., : keys.shape[2]], -torch.inf)
    weights = scores.softmax(-1).to(values.dtype).flatten(1, 2)
    return (weights @ values[0]).view(*query.shape[:3], -1).transpose(1, 2)


# ---- many query rows


def _attend_many(asked: Asked, key: Tensor, value: Tensor, *, causal: bool) -> Tensor | None:
    """Compute (B, S, H, D) with the compiled kernel for prompts; None if it does not take these.

    `causal`: without a mask, each query sees the keys up to its own; otherwise all.
    """
    by_head = asked.mask is not None and asked.mask.shape[1] > 1
    if type(asked.query) is not Tensor or asked.query.device.type != "cpu" or by_head:
        return None
    call = asked.call(Stored(key), Stored(value))
    return native_prompt.attend(call, causal=causal) if native_prompt.suits(call) else None


def _attend_by_torch(asked: Asked, key: Tensor, value: Tensor) -> Tensor:
    """Compute (B, S, H, D) with torch; no mask = causal with equal numbers of keys and queries, or one full query."""
    if asked.softcap is not None or asked.sinks is not None:
        return _attend_plainly(asked, key, value)
    query, mask, scale = asked.query, asked.mask, asked.scale
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None and mask.shape[1] == 1 and query.shape[2] <= FEW_QUERIES:
        # Heads that share keys become rows of one head; otherwise kernels that take a mask would copy the keys.
        batch, heads, count, _ = query.shape
        rows = query.reshape(batch, key.shape[1], -1, query.shape[3])
        own = mask if count == 1 else mask.repeat(1, 1, heads // key.shape[1], 1)
        out = F.scaled_dot_product_attention(rows, key, value, attn_mask=own, scale=scale)
        return out.reshape(batch, heads, count, value.shape[3]).transpose(1, 2).contiguous()
    if grouped and query.device.type == "cuda" and mask is not None:
        # With a mask, CUDA has no fast kernel for grouped heads.
        shared = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), False
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        scale=scale,
        is_causal=mask is None and query.shape[2] > 1,
        enable_gqa=grouped,
    )
    return out.transpose(1, 2).contiguous()


def _attend_plainly(asked: Asked, key: Tensor, value: Tensor) -> Tensor:
    """Compute (B, S, H, D) with fp32 scores, QUERY_CHUNK query rows at a time."""
    query, softcap = asked.query, asked.softcap
    batch, heads, rows, _ = query.shape
    shared = heads // key.shape[1]
    keys = key.float().repeat_interleave(shared, 1).transpose(2, 3)
    values = value.float().repeat_interleave(shared, 1)
    out = query.new_empty(batch, rows, heads, value.shape[-1])
    for start in range(0, rows, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, rows)
        scores = query[:, :, start:stop].float() @ keys * asked.scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = _masked(scores, asked.mask, start, stop)
        out[:, start:stop] = (_weights(scores, asked.sinks) @ values).transpose(1, 2).to(out.dtype)
    return out


def _masked(scores: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
    if mask is None:
        last = torch.arange(start, stop, device=scores.device)[:, None]
        return scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) > last, -torch.inf)
    own = mask[:, :, start:stop, : scores.shape[-1]]
    return scores.masked_fill(~own, -torch.inf) if own.dtype is torch.bool else scores + own


def _weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]


def _all_seen(query: Tensor, key: Tensor) -> Tensor:
    """Return a mask (1, 1, S, T) that hides nothing; torch would take None as causal here."""
    return torch.ones((1, 1, query.shape[2], key.shape[2]), dtype=torch.bool, device=query.device)
