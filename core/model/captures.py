"""All captured work of one model on one card: the whole model if it lies there entirely, otherwise runs of layers.

Passes over few rows are computed by replays where possible; `drop` and `use` follow the plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.accelerators.graph import Leave
from core.errors import DeviceLost
from core.layers import attention
from core.layers.kv_cache import KVCache, cache_argument
from core.layers.kv_stretch import stretch_of
from core.layers.lent_states import lends
from core.model.blueprint import decoder_layers
from core.model.captured_run import CapturedRun, GraphRoom, Piece
from core.model.language_half import text_config
from core.model.resident_run import ResidentRun
from core.model.tables import other_tables
from core.planning.capture import MOST_ROWS, is_whole, runs_of
from core.spec import Plan

ARGUMENTS = frozenset(("inputs_embeds", "position_ids", "attention_mask"))


@dataclass(frozen=True)
class GraphUse:
    """Bytes that graphs take of a device's memory, bytes set aside for them, and whether more were not made for lack of
    these."""

    taken: int
    reserved: int
    full: bool


class Captures:
    """The captured runs of one model on one device, for the plan in use."""

    def __init__(self, module: Any, accelerator: Accelerator) -> None:
        self._module = module
        self._accelerator = accelerator
        self._cache_argument = cache_argument(module)
        self._whole: CapturedRun | None = None
        self._runs: list[ResidentRun] = []
        self._room: GraphRoom | None = None

    def use(self, plan: Plan) -> None:
        """Start anew under this plan, which has been applied; it says which layers may be captured."""
        self.drop()
        if not plan.captured or not takes_our_masks(self._module):
            return
        self._room = room = GraphRoom(self._accelerator, plan.graph_bytes)
        if is_whole(plan) and _computes_from_rows(self._module):
            self._whole = CapturedRun("the whole model", room)
        layers, device = decoder_layers(self._module), self._accelerator.device
        gaps = {self._module.get_submodule(name) for name in plan.gaps}
        # With more KV caches than layers (HRM), a pass goes through layers several times.
        once = max(plan.captured) < len(layers)
        able = [number for number in plan.captured if not lends(layers[number])] if once else []
        for numbers in runs_of(able):
            self._runs.append(ResidentRun({number: layers[number] for number in numbers}, gaps, device, room))

    @property
    def graphs(self) -> GraphUse | None:
        """The memory of graphs under this plan; None if it allows none."""
        room = self._room
        return None if room is None else GraphUse(room.taken, room.limit, room.full)

    def drop(self) -> None:
        """Free all captured work, because memory that it uses is about to change; disabled until the next `use`."""
        if self._room is not None:
            with suppress(DeviceLost):
                self._accelerator.synchronize()  # replays of a pass that failed may still be under way
        if self._whole is not None:
            self._whole.drop()
        for run in self._runs:
            run.remove()
        self._whole, self._runs, self._room = None, [], None

    def logits(
        self, ids: Sequence[int], cache: KVCache, ordinary: Callable[[], Tensor], *, whole: bool = True
    ) -> Tensor:
        """Return (1, n, V) on the device for the next ids (n,); `ordinary` computes it by the model's modules.

        `whole`: all n rows are wanted, and modules besides the layers need not be called. Raises NotEnoughMemory,
        DeviceLost, and what `ordinary` raises.
        """
        if len(ids) > MOST_ROWS or min(ids) < 0:
            return ordinary()
        if self._whole is not None and not self._whole.given_up and whole:
            stretch = stretch_of(cache.layers, len(ids), len(cache.tokens), self._accelerator.device)
            if stretch is not None:
                return self._whole.result(self._piece(ids, cache, ordinary), stretch)
        with self._running(cache):
            return ordinary()

    @contextmanager
    def _running(self, cache: KVCache) -> Iterator[None]:
        """Let runs of layers compute the pass."""
        for run in self._runs:
            run.begin_pass(cache)
        try:
            yield
        finally:
            for run in self._runs:
                run.end_pass()

    def _piece(self, ids: Sequence[int], cache: KVCache, ordinary: Callable[[], Tensor]) -> Piece:
        """Return the pass of the whole model, from the embedding rows (1, n, H) on, which are looked up in RAM."""
        rows: Tensor = self._module.get_input_embeddings().table(torch.tensor([list(ids)]))

        def compute(_: Leave, places: Tensor, masks: Mapping[int, Tensor], inputs: Sequence[Tensor]) -> Tensor:
            output = self._module(
                inputs_embeds=inputs[0], position_ids=places[:1], attention_mask=self._mask(masks, cache),
                use_cache=True, **{self._cache_argument: cache},
            )  # fmt: skip
            logits: Tensor = output.logits
            return logits

        return Piece([rows], (), compute, ordinary)

    def _mask(self, masks: Mapping[int, Tensor], cache: KVCache) -> Tensor | dict[str, Tensor]:
        """Return what the model takes as its mask: one (1, 1, n, T), or one for each type of its layers."""
        if len(masks) == 1:
            return next(iter(masks.values()))
        types = text_config(self._module.config).layer_types
        return {kind: masks[layer.window] for kind, layer in zip(types, cache.layers, strict=True)}


def takes_our_masks(module: Any) -> bool:
    """Return whether attention takes the masks that captured work computes: of all tokens, or of a sliding window."""
    chunked = getattr(text_config(module.config), "attention_chunk_size", None)
    return bool(module.config._attn_implementation == attention.NAME) and not chunked


def _computes_from_rows(module: Any) -> bool:
    """Return whether the model accepts embeddings, positions and a mask, and looks up nothing else by ids."""
    config, asked = module.config, inspect.signature(module.forward).parameters.keys()
    return type(config) is type(text_config(config)) and asked >= ARGUMENTS and not other_tables(module)
