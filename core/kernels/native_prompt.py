"""Calls the compiled attention of many query rows, as in prompts."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from core.kernels.native_abi import INSTRUCTION_SETS, SHAPE_FIELDS, TYPES, instruction_sets, library
from core.kernels.native_library import AttentionCall

SETS = ("avx512vnni", "avxvnni", "avx2")
"""Instruction sets with such a kernel."""
PAIR, COLUMNS_AT_ONCE = 2, 4
"""Head dimensions are multiples of these: of keys, and of values."""
ONE_THREAD_PRODUCTS = 1 << 18
"""Fewer products than this run on one thread."""


def suits(call: AttentionCall) -> bool:
    """Return whether the kernel takes this call on this processor, and is faster; keys and values must be floats.

    In bf16 it takes torch's own steps, so that models that are stored so answer as with transformers.
    """
    q, k, v = call.query, call.key, call.value
    typed = q.dtype in (torch.float32, torch.bfloat16) and q.dtype is k.dtype and q.dtype is v.dtype
    laid = q.stride(3) == k.stride(3) == v.stride(3) == 1
    masked = call.mask is None or (call.mask.dtype is torch.bool and call.mask.shape[1] == 1)
    sized = q.shape[3] % PAIR == 0 and call.value_dim % COLUMNS_AT_ONCE == 0 and q.shape[1] % k.shape[1] == 0
    alike = q.dtype is torch.float32 or (attends_short() and q.shape[3] == call.value_dim)
    return typed and laid and masked and sized and alike and call.scale > 0 and best() in SETS


def best() -> str:
    """Return the processor's best instruction set, '' without a library."""
    return next(iter(instruction_sets()), "")


@cache
def attends_short() -> bool:
    """Return whether attention in bf16 is faster here than torch's, which is not so where torch has AMX."""
    compiled = library()
    return compiled is not None and bool(compiled.hetegen_attends_short())


def attend(call: AttentionCall, *, causal: bool, instruction_set: str | None = None) -> Tensor | None:
    """Return the attention output (B, S, H, D), contiguous, in the query's type; None if the mask does not show each
    query adjacent keys.

    `causal`: without a mask, the last query sees all keys, and each one before it one key less.
    """
    compiled, q = library(), call.query
    assert compiled is not None
    isa = INSTRUCTION_SETS[instruction_set or best()]
    threads = torch.get_num_threads() if q.numel() * call.key.shape[2] > ONE_THREAD_PRODUCTS else 1
    shape = (ctypes.c_int64 * SHAPE_FIELDS)(*call.shape(1))
    out = torch.empty((q.shape[0], q.shape[2], q.shape[1], call.value_dim), dtype=q.dtype)
    scratch = torch.empty(compiled.hetegen_prompt_attention_bytes(shape, threads), dtype=torch.uint8)
    query, states, mask, sinks = call.addresses
    done = compiled.hetegen_prompt_attention(
        isa, shape, query, states, mask, causal, sinks, call.scale, call.softcap, out.data_ptr(), TYPES[q.dtype],
        scratch.data_ptr(), threads,
    )  # fmt: skip
    return out if done else None
