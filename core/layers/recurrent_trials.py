"""Trial calls of the functions that recurrent layers consist of, to compare our implementations with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.trials import is_like, near

NEAR = {torch.float32: 2e-4, torch.bfloat16: 0.03}
"""Largest error relative to the largest element: summation order and bf16 rounding differ."""
HEADS, GROUPS, DIM, STATES, CHANNELS = 4, 2, 16, 24, 40
FEW, MANY = 3, 70
"""Numbers of tokens tried; the second exceeds one chunk."""

Make = Callable[[], tuple[dict[str, Any], tuple[str, ...]]]
"""Makes the arguments of a call, the same each time, and the names of those that it modifies."""


def agree(one: Callable[..., Any], other: Callable[..., Any], make: Make, dtype: torch.dtype) -> bool:
    """Return whether both give the same results and modify their arguments equally; `dtype`: the model's."""
    found = []
    for function in (one, other):
        arguments, changed = make()
        results = function(**arguments)
        found.append([*(results if isinstance(results, tuple) else (results,)), *(arguments[name] for name in changed)])
    same = len(found[0]) == len(found[1])
    return same and all(_agree(mine, theirs, NEAR[dtype]) for mine, theirs in zip(found[0], found[1], strict=True))


def calls(name: str, convolution: nn.Conv1d) -> Iterator[Make]:
    """Yield the trial calls of the function of that name; `convolution` as made by `convolution`."""
    dtype = convolution.weight.dtype
    for tokens in (FEW, MANY) if "chunk" in name or name.endswith("_fn") else (1,):
        for known in (False, True):
            if name.startswith("causal"):
                yield partial(_convolve, name, convolution, tokens, silu=known)
            elif "delta" in name:
                yield partial(_delta_rule, dtype, tokens, known=known)
            elif "chunk" in name:
                yield partial(_scan, dtype, tokens, known=known)
            else:
                yield partial(_update, dtype, skip=known)


def convolution(dtype: torch.dtype) -> nn.Conv1d:
    """Make a depthwise convolution."""
    made = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3, dtype=dtype)
    draw = _Numbers(dtype)
    made.weight.data, made.bias.data = draw(CHANNELS, 1, 4), draw(CHANNELS)  # type: ignore[union-attr]
    return made


class _Numbers:
    """Random numbers that are the same for every instance."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._dtype = dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype or self._dtype)


def _convolve(name: str, of: nn.Conv1d, tokens: int, *, silu: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    draw = _Numbers(of.weight.dtype)
    arguments = {
        "hidden_states": draw(1, tokens, CHANNELS).transpose(1, 2),
        "weight": of.weight.squeeze(1),
        "bias": of.bias,
        "activation": "silu" if silu else None,
    }
    if name.endswith("_fn"):
        return arguments, ()
    return arguments | {"conv_state": draw(1, 4, CHANNELS).transpose(1, 2)}, ("conv_state",)


def _delta_rule(dtype: torch.dtype, tokens: int, *, known: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    draw, fp32 = _Numbers(dtype), torch.float32
    return {
        "query": draw(1, tokens, GROUPS, STATES), "key": draw(1, tokens, GROUPS, STATES),
        "value": draw(1, tokens, HEADS, DIM), "g": -draw(1, tokens, HEADS, dtype=fp32).abs(),
        "beta": draw(1, tokens, HEADS).sigmoid(), "output_final_state": True, "use_qk_l2norm_in_kernel": True,
        "initial_state": draw(1, HEADS, STATES, DIM, dtype=fp32) if known else None,
    }, ()  # fmt: skip


def _scan(dtype: torch.dtype, tokens: int, *, known: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    draw, fp32 = _Numbers(dtype), torch.float32
    return {
        "hidden_states": draw(1, tokens, HEADS, DIM), "dt": draw(1, tokens, HEADS), "A": -draw(HEADS, dtype=fp32).exp(),
        "B": draw(1, tokens, GROUPS, STATES), "C": draw(1, tokens, GROUPS, STATES), "chunk_size": 32, "D": draw(HEADS),
        "dt_bias": draw(HEADS), "dt_softplus": True, "dt_limit": (0.1, 2.0), "return_final_states": True,
        "initial_states": draw(1, HEADS, DIM, STATES, dtype=fp32) if known else None,
    }, ()  # fmt: skip


def _update(dtype: torch.dtype, *, skip: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    draw, fp32 = _Numbers(dtype), torch.float32
    return {
        "state": draw(1, HEADS, DIM, STATES, dtype=fp32), "hidden_states": draw(1, HEADS, DIM),
        "dt": draw(1, HEADS, 1).expand(-1, -1, DIM), "B": draw(1, GROUPS, STATES), "C": draw(1, GROUPS, STATES),
        "A": -draw(HEADS, 1, 1, dtype=fp32).exp().expand(-1, DIM, STATES), "dt_softplus": True,
        "D": draw(HEADS, 1).expand(-1, DIM) if skip else None,
        "z": draw(1, HEADS, DIM) if skip else None, "dt_bias": draw(HEADS, 1).expand(-1, DIM),
    }, ("state",)  # fmt: skip


def _agree(expected: Any, found: Any, error: float) -> bool:
    """Return whether the tensors have the same shape and type and nearly equal elements."""
    return is_like(found, expected) and near(found, expected, error)
