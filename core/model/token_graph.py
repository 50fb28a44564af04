"""The pass over one token, captured and replayed on a card that holds the whole model and its KV cache.

What differs between tokens is read from device memory: the embedding row and the position. Keys and values are written
at that position, and attention reads a fixed stretch of the cache under a mask computed from the position. A captured
pass is compared with an ordinary one before it is used, so no list of supported architectures is needed.
"""

from __future__ import annotations

import inspect
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.accelerators.graph import Replay
from core.layers import attention
from core.layers.kv_cache import KVCache
from core.layers.kv_layers import TokenPlace
from core.model.blueprint import cache_argument
from core.model.language_half import text_config
from core.model.tables import other_tables
from core.spec import Plan

STRETCH = 256
"""Attention reads a multiple of this many tokens of the cache; the pass is captured anew when that grows."""
FIRST_TOKENS = 4
"""Ordinary passes under a new plan before a capture, which takes as long as several of them."""
ARGUMENTS = frozenset(("inputs_embeds", "position_ids", "attention_mask"))
EXACT, ROUNDED = 1e-3, 0.05
"""Largest relative difference (norms) to an ordinary pass in 32 and 16 bits: sums are added in another order."""

log = logging.getLogger(__name__)


class TokenGraph:
    """The captured pass of one model on one device."""

    def __init__(self, module: Any, accelerator: Accelerator) -> None:
        self._module = module
        self._accelerator = accelerator
        self._cache_argument = cache_argument(module)
        self._wanted = False
        self._ordinary = 0
        self._replay: Replay | None = None
        self._held: list[Tensor] = []
        self._seen = 0

    def use(self, plan: Plan) -> None:
        """Start anew under this plan, which has been applied; it says whether passes may be captured."""
        self.drop()
        self._wanted, self._ordinary = plan.captured and _computes_from_rows(self._module), 0

    def drop(self) -> None:
        """Free the captured pass, because memory that it uses is about to change; disabled until the next `use`."""
        self._wanted = False
        self._forget()

    def logits(self, id: int, cache: KVCache, ordinary: Callable[[], Tensor]) -> Tensor:
        """(1, 1, V) for the next token, on the device: by a replay if possible, otherwise by `ordinary`. Raises
        NotEnoughMemory, DeviceLost."""
        if not self._wanted or not (held := cache.buffers_on(self._accelerator.device)):
            return ordinary()
        place = len(cache.tokens)
        seen = min(-(-(place + 1) // STRETCH) * STRETCH, cache.capacity)
        if self._replay is not None and self._is_of(held, seen):
            found = self._replay(*self._inputs(id, place))
            cache.advance()
            return found
        self._ordinary += 1
        # At the last position of a stretch the comparison cannot detect a pass that confuses the two.
        if self._ordinary <= FIRST_TOKENS or place == seen - 1:
            return ordinary()
        return self._tried(id, cache, seen, ordinary)

    def _is_of(self, held: list[Tensor], seen: int) -> bool:
        """Whether the captured pass reads this many tokens of these buffers."""
        return self._seen == seen and all(map(operator.is_, held, self._held))

    def _inputs(self, id: int, place: int) -> tuple[Tensor, Tensor]:
        """The embedding row (1, 1, H), looked up in RAM, and the position (1,)."""
        row: Tensor = self._module.get_input_embeddings().table(torch.tensor([[id]]))
        return row, torch.tensor([place])

    def _tried(self, id: int, cache: KVCache, seen: int, ordinary: Callable[[], Tensor]) -> Tensor:
        """Capture a pass and keep it if it agrees with the ordinary one, whose logits are returned."""
        found = self._captured(id, cache, seen)
        expected = ordinary()  # last, so that the cache holds the ordinary pass's keys and values
        if found is None or not _agree(found, expected):
            log.info("No captured pass: %s", "the capture failed" if found is None else "its logits differ")
            self.drop()
        return expected

    def _captured(self, id: int, cache: KVCache, seen: int) -> Tensor | None:
        """Capture the pass and replay it once; its logits (1, 1, V) on the host, None if that fails."""
        self._forget()
        inputs = self._inputs(id, len(cache.tokens))
        try:
            cache.blank(seen)
            self._replay = self._accelerator.captured(lambda row, place: self._step(row, place, cache, seen), inputs)
            self._held, self._seen = cache.buffers_on(self._accelerator.device), seen
            return None if self._replay is None else self._replay(*inputs).cpu()
        # Each architecture fails in its own way; a lost device raises again in the ordinary pass.
        except Exception as error:  # noqa: BLE001
            log.info("A pass cannot be captured: %s", error)
            return None

    def _step(self, row: Tensor, place: Tensor, cache: KVCache, seen: int) -> Tensor:
        """Logits (1, 1, V) of a token with this embedding row (1, 1, H) and position (1,)."""
        mask = (torch.arange(seen, device=place.device) <= place).view(1, 1, 1, seen)
        with cache.written_at(TokenPlace(place, seen)):
            output = self._module(
                inputs_embeds=row, position_ids=place.unsqueeze(0), attention_mask=mask, use_cache=True,
                **{self._cache_argument: cache},
            )  # fmt: skip
        logits: Tensor = output.logits
        return logits

    def _forget(self) -> None:
        replay, self._replay, self._held = self._replay, None, []
        if replay is not None:
            replay.drop()


def _computes_from_rows(module: Any) -> bool:
    """Whether the model accepts embeddings, positions and a mask, and uses our attention."""
    config, asked = module.config, inspect.signature(module.forward).parameters.keys()
    ours = config._attn_implementation == attention.NAME and type(config) is type(text_config(config))
    return ours and asked >= ARGUMENTS and not other_tables(module)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether logits (1, 1, V) on the host equal those on the device, except for rounding."""
    limit = EXACT if expected.dtype in (torch.float32, torch.float64) else ROUNDED
    right = expected.cpu().float()
    return bool((found.float() - right).norm() <= limit * right.norm())
