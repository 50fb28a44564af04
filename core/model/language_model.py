"""The forward pass of a language model: transformers' module tree, filled with weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import HeteGenError, ModelFailed, ModelUnreadable
from core.events import Stop, never
from core.layers.fused_forward import one_by_one
from core.layers.kv_cache import KVCache, cache_argument
from core.layers.layer_list import keep_lists
from core.layers.rotary import FrequencySets, stay_in_thread
from core.model.blueprint import decoder_layers, reason
from core.model.filling import ram_failure
from core.model.pictures import Vision
from core.model.placement import DevicePlacement, HostPlacement
from core.model.straight_pass import StraightPass
from core.sentence import sentence
from core.spec import KvFormat
from core.startup.torch_threads import one_thread

log = logging.getLogger(__name__)


class ForwardStopped(Exception):
    """Raised from a forward pass between two layers when `stop` returns True."""


FIRST, REHEARSED, SHORT = (1, 2, 3, 4), ((5,), (6, 7, 8)), 16
"""Ids that a rehearsal reads first, those that it reads in both ways, and the length of its KV cache."""

Listener = Callable[[Sequence[int], Tensor], None]
"""Called after a pass with all ids in the cache, and the last norm's output (n, H) for the n ids of the pass."""


class LanguageModel:
    """Computes logits from ids and keeps the KV cache consistent on every failure. `on_states` is called after each
    pass.

    `whole_head`: compute all logits with the output head itself, even if there is a coarse copy of it.
    """

    def __init__(self, module: Any, placement: HostPlacement | DevicePlacement | None = None) -> None:
        """`module`: a filled causal language model of transformers; `placement`: has installed our linears in it."""
        self.module = module
        self.placement = placement or HostPlacement(module, {})
        self.vision: Vision | None = None
        self.on_states: Listener | None = None
        self.whole_head = False
        self._states: Tensor | None = None
        self._stop: Stop = never
        self._vocabulary = module.get_input_embeddings().weight.shape[0]
        self.frequencies = FrequencySets(module)
        stay_in_thread(module)
        keep_lists(module)
        parameters = inspect.signature(module.forward).parameters
        self._keeps_last = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters and not _counts_from_padding(module)
        self._cache_argument = cache_argument(module)
        for layer in decoder_layers(module):
            layer.register_forward_pre_hook(self._look_at_stop)
        module.base_model.register_forward_hook(self._keep_states)

    @torch.inference_mode()
    def forward(
        self, ids: Sequence[int], cache: KVCache, stop: Stop = never, keep: int = 1, divide_for: int = 1
    ) -> Tensor:
        """Append `ids` (n,) to the cache; return the logits (keep, vocabulary) of the last `keep` of them in fp32.

        Negative ids are those of a picture: at most one, and then all of it. Rows are divided between devices as for
        `divide_for` ids if there are fewer: prefetched rows then stay useful while the number of ids varies between
        passes. Raises ForwardStopped, NotEnoughMemory, ModelFailed; the cache is then as before the pass, or as at the
        last mark.
        """
        if ids and max(ids) >= self._vocabulary:
            raise _unknown_id(max(ids), self._vocabulary)
        known = len(cache.tokens)
        self.placement.begin_pass(max(len(ids), divide_for), whole_head=self.whole_head)
        try:
            with self.placement.failures(), self._layers_apart(ids):
                # Device errors surface here at the latest, where the results are synchronised.
                logits = _widened(self._logits(ids, cache, stop, keep)[0, -keep:].cpu())
                states = None if self._states is None else self._states[0].cpu()
        except BaseException as error:
            cache.restore(known)  # some layers already hold the new tokens: cut each back to what all of them hold
            if (failure := _as_failure(error)) is None:
                raise
            raise failure from error
        finally:
            self._states = None
            self.placement.end_pass()
        cache.tokens.extend(ids)
        if self.on_states is not None and states is not None:
            self.on_states(cache.tokens, states)
        return logits

    def rehearse(self, format: KvFormat) -> None:
        """Find out whether passes over few tokens may go straight: with a KV cache of this format, they must give the
        same logits as ordinary passes. Raises what `forward` does; then they do not go straight."""
        straight, cache = self.placement.straight, KVCache(self.module.config, SHORT, format=format)
        if straight is None or self._does_more or not (cache.can_rewind or cache.can_return):
            return
        straight.proven = False  # of an earlier rehearsal: nothing is learnt from straight passes
        self.forward(FIRST, cache)
        self.mark(cache)
        with straight.learning(REHEARSED[-1], cache):
            self.forward(REHEARSED[-1], cache)
        cache.rewind(len(FIRST))
        straight.proven = straight.is_known and all(self._agrees(straight, ids, cache) for ids in REHEARSED)
        log.info("Passes over few tokens go straight: %s", straight.proven)

    def _agrees(self, straight: StraightPass, ids: Sequence[int], cache: KVCache) -> bool:
        """Return whether the straight pass gives the logits of the ordinary one, bit for bit."""

        def logits() -> Tensor:
            found = self.forward(ids, cache, keep=(len(ids) + 1) // 2)
            cache.rewind(len(FIRST))
            return found

        logits()  # shows that all layers may be one call
        expected = logits()
        straight.proven = True
        try:
            return torch.equal(logits(), expected)
        finally:
            straight.proven = False

    @property
    def _does_more(self) -> bool:
        """Whether a pass may have to do more than compute logits from ids."""
        return self.on_states is not None or self.vision is not None

    def _straight(self, ids: Sequence[int], cache: KVCache, stop: Stop, keep: int) -> Tensor | None:
        """Return the logits (1, keep, vocabulary) without transformers' forward; None where it may do more."""
        straight = self.placement.straight
        if straight is None or not straight.proven or self._does_more:
            return None
        if stop():
            raise ForwardStopped
        return straight.logits(ids, cache, keep)

    def _logits(self, ids: Sequence[int], cache: KVCache, stop: Stop, keep: int) -> Tensor:
        """(1, n, vocabulary) on the compute device, for at least the last `keep` ids."""

        def ordinary() -> Tensor:
            self._stop = stop
            try:
                logits: Tensor = self.module(**self._inputs(ids, cache, keep)).logits
            finally:
                self._stop = never  # a capture must not be interrupted
            return logits

        if (found := self._straight(ids, cache, stop, keep)) is not None:
            return found
        captures = self.placement.captures
        if captures is None:
            return ordinary()
        return captures.logits(ids, cache, ordinary, whole=keep == len(ids) and self.on_states is None)

    def mark(self, cache: KVCache, *, briefly: bool = False) -> None:
        """Save the cache's current state so that it can be restored: see `KVCache.mark`."""
        with self.placement.failures():
            if isinstance(self.placement, DevicePlacement):
                self.placement.accelerator.synchronize()
            cache.mark(briefly=briefly)

    def _inputs(self, ids: Sequence[int], cache: KVCache, keep: int) -> dict[str, Any]:
        inputs = {
            "input_ids": torch.tensor([list(ids)], device=self.placement.device),
            self._cache_argument: cache,
            "use_cache": True,
        }
        if self._keeps_last:
            inputs["logits_to_keep"] = keep
        if self._takes_positions:  # some families (Bamba) would count from 0 in every pass
            start = len(cache.tokens)
            inputs["position_ids"] = torch.arange(start, start + len(ids), device=self.placement.device).unsqueeze(0)
        if self.vision is not None and self.vision.concerns(cache.tokens, ids):
            inputs |= self.vision.inputs(cache.tokens, ids, self.placement.device)
        return inputs

    def _layers_apart(self, ids: Sequence[int]) -> AbstractContextManager[None]:
        """Run layers one by one for a pass with a picture: some families add its features between layers."""
        return one_by_one(self.placement.runs) if min(ids, default=0) < 0 else nullcontext()

    def _keep_states(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.on_states is not None:
            self._states = output[0]

    def _look_at_stop(self, module: nn.Module, inputs: Any) -> None:
        if self._stop():
            raise ForwardStopped


def _counts_from_padding(module: nn.Module) -> bool:
    """Return whether positions start after the padding token's id and the model computes them itself (Kosmos-2)."""
    return any(
        hasattr(child, "create_position_ids_from_input_ids") and hasattr(child, "make_weights")
        for child in module.modules()
    )


def _widened(logits: Tensor) -> Tensor:
    """Convert logits (n, vocabulary) to fp32."""
    with one_thread():
        return logits.float()


def _unknown_id(id: int, rows: int) -> ModelUnreadable:
    return ModelUnreadable(
        "The tokenizer and the weights do not belong together.",
        sentence("The tokenizer gives the id {}, and the weights know {} ids.", f"{id:,}", f"{rows:,}"),
        "Download the model again.",
    )


def _as_failure(error: BaseException) -> HeteGenError | None:
    """Return the failure to report for an exception of a forward pass; None if it should propagate unchanged."""
    if (failure := ram_failure(error)) is not None:
        return failure
    if isinstance(error, HeteGenError | ForwardStopped) or not isinstance(error, Exception):
        return None
    # Each architecture is a program of its own and fails in its own way.
    log.error("The model's forward pass failed", exc_info=error)
    return ModelFailed(
        "The model failed while it computed the reply.",
        sentence("Its own program says: {}.", reason(error)),
        "Send the message again; if it fails again, choose another model.",
    )
