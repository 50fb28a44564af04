"""What a decoder layer is given besides its rows, by the names that transformers uses."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASK, ANGLES, POSITIONS = "attention_mask", "position_embeddings", "position_ids"
SIDE, LENT = "per_layer_input", "shared_kv_states"
"""The layer's own part of Gemma's inputs per layer, and what carries keys and values between layers that share them,
by type of layer."""


class Given(NamedTuple):
    """The arguments of a layer besides its rows and the cache: mask (1, 1, M, T), angles (1, M, D), its side input
    (1, M, P), and the keys and values that layers share."""

    mask: Tensor | None
    cos: Tensor
    sin: Tensor
    side: Tensor | None = None
    lent: MutableMapping[str, Any] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Given:
        """Return a layer's arguments from those of its forward by name."""
        cos, sin = arguments[ANGLES]
        return cls(arguments.get(MASK), cos, sin, arguments.get(SIDE), arguments.get(LENT))

    @property
    def sight(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return mask (1, 1, M, T) and angles (1, M, D), which layers that see the same tokens have in common."""
        return self[:3]

    def angles(self, half: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001  a trait of the model
        """Return cos and sin (1, M, turned), from angles per pair of columns (`half`) or per column."""
        if not half:
            return self.cos, self.sin
        return torch.cat((self.cos, self.cos), -1), torch.cat((self.sin, self.sin), -1)


def by_name(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a forward's arguments by name; None if one that ours does not take is given without its name."""
    if not args:
        return kwargs
    given = {name: value for name, value in zip(names, args, strict=False) if value is not None}
    return {**kwargs, **given} if given.keys() <= {SIDE} else None


def is_side(side: Tensor | None, x: Tensor, columns: int) -> bool:
    """Return whether our library takes this side input of so many columns beside rows x (1, M, K)."""
    if side is None or not columns:
        return side is None and not columns
    return side.shape == (1, x.shape[1], columns) and side.dtype is x.dtype and side.stride(2) == 1
