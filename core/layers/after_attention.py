"""What follows attention in a layer with experts, and whether it is nothing but a router and experts of our library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.native_experts import NativeExperts
from core.kernels.native_router import NativeRouter
from core.layers import moe
from core.layers.fused_experts import FusedExperts
from core.layers.fused_routers import FusedRouter

TRIED_ROWS = 3


class AfterAttention:
    """What the layer's experts, and the norm behind them, make of the normed states."""

    def __init__(self, mlp: Any, norm: nn.Module | None) -> None:
        self._mlp = mlp
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, M, K) -> (1, M, K)."""
        found = self._mlp(x)
        added: Tensor = found[0] if isinstance(found, tuple) else found  # some also give what their router says
        return added if self._norm is None else self._norm(added)

    def natives(self, rows: int) -> tuple[NativeRouter, NativeExperts] | None:
        """What chooses and computes experts for so many rows, where the two are all parts that there are."""
        children = list(self._mlp.children())
        routers = [own for child in children if isinstance(own := vars(child).get("forward"), FusedRouter)]
        experts = [own for child in children if isinstance(own := vars(child).get(moe.TOGETHER), FusedExperts)]
        if not len(routers) == len(experts) == 1 or len(children) > 2:
            return None
        native, router = experts[0].native(rows * routers[0].native.routing.choices), routers[0].native
        return None if native is None or native.library is not router.library else (router, native)

    @torch.inference_mode()
    def is_plain(self, columns: int) -> bool:
        """Whether the experts so chosen and computed are what is computed here, bit for bit, before the norm."""
        if (natives := self.natives(TRIED_ROWS)) is None:
            return False
        router, experts = natives
        x = torch.randn(1, TRIED_ROWS, columns, generator=torch.Generator().manual_seed(0)).to(experts.dtype)
        found = self._mlp(x)
        _, shares, chosen = router(x[0])
        expected: Tensor = found[0] if isinstance(found, tuple) else found
        return expected.equal(experts(x[0], chosen, shares)[None])
