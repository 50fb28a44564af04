"""A linear's whole weight. Layers that ask for it usually only read its type (Mamba 2, Hunyuan 4, DeepSeek 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class WholeWeight(Tensor):
    """(N, K) of a type and device. Its values are made anew for each operation that reads them."""

    make: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, make: Callable[[], Tensor]
    ) -> WholeWeight:
        weight: WholeWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        weight.make = make
        return weight

    @classmethod  # torch's own stands for none
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation with the values in place of the weights."""
        given, named = tree_map_only(WholeWeight, lambda weight: weight.make(), (args, kwargs or {}))
        return func(*given, **named)
