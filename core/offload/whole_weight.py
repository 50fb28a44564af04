"""A linear's whole weight, for layers that ask for it instead of calling the linear.

Most only read its type (Mamba 2, Hunyuan 4, DeepSeek 3.2), and some multiply by it (Mamba, Falcon Mamba, Jamba).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

PRODUCTS = (Tensor.__matmul__, Tensor.matmul, torch.matmul)


class WholeWeight(Tensor):
    """(N, K) of a type and device, without values. Products with it are the linear's; other operations that read its
    values have them made."""

    make: Callable[[], Tensor]
    product: Callable[[Tensor], Tensor]

    @staticmethod
    def __new__(
        cls,
        like: tuple[tuple[int, int], torch.dtype, torch.device],
        make: Callable[[], Tensor],
        product: Callable[[Tensor], Tensor],
    ) -> WholeWeight:
        """`like`: shape, type and device; `make`: returns the values; `product`: (..., K) -> (..., N)."""
        shape, dtype, device = like
        weight: WholeWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        weight.make, weight.product = make, product
        return weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Multiply by the linear: (N, K) @ (..., K, T) -> (..., N, T)."""
        if func in PRODUCTS and isinstance(args[0], WholeWeight) and args[1].dim() > 1:
            return args[0].product(args[1].mT).mT
        with torch._C.DisableTorchFunctionSubclass():  # the results are no whole weights
            return func(*args, **(kwargs or {}))

    @classmethod  # torch's own stands for none
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation with the values in place of the weights."""
        given, named = tree_map_only(WholeWeight, lambda weight: weight.make(), (args, kwargs or {}))
        return func(*given, **named)
