"""The pass over a few tokens of a model whose layers the CPU computes in one call, without transformers' own forward.

What transformers does around the layers takes a noticeable part of a small model's token. `LanguageModel.rehearse`
compares such passes bit for bit with ordinary ones before they are used, so no list of supported architectures is
needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.fused_forward import Given, LayerRun
from core.layers.kv_cache import KVCache
from core.layers.kv_layers import PreallocatedLayer
from core.model.captures import takes_our_masks
from core.model.language_half import text_config
from core.startup.torch_threads import one_thread

ANGLES, NORM = "rotary_emb", "norm"
"""transformers' names of the modules that a decoder has besides its layers and the input table."""
LAYER_TYPE = "layer_type"
"""The argument of modules whose angles differ between types of layers."""


class StraightPass:
    """Embeds ids, computes all layers in one call, and the logits from the last norm's output.

    `proven`: whether comparisons have shown that it gives the same logits as ordinary passes.
    """

    def __init__(self, module: Any, run: LayerRun) -> None:
        """`run`: all layers of `module`, a causal language model with modules of the usual names."""
        self.proven = False
        self._run = run
        self._firsts = [places[0] for places in run.kinds]
        self._table, self._head = module.get_input_embeddings(), module.get_output_embeddings()
        self._angles, self._norm = (getattr(module.base_model, name) for name in (ANGLES, NORM))
        self._types = _types(module, self._angles)

    def logits(self, ids: Sequence[int], cache: KVCache, keep: int) -> Tensor | None:
        """Return (1, keep, vocabulary) after the next ids (n,); None for passes that must go the ordinary way."""
        start, rows = len(cache.tokens), len(ids)
        kept = [cache.layers[place] for place in self._firsts]
        ours = all(isinstance(one, PreallocatedLayer) for one in kept)
        if not start or rows > self._run.most_rows or self._run.paused or not ours:
            return None
        x = self._table(torch.tensor([list(ids)]))
        angles = self._angles_by_type(x, torch.arange(start, start + rows).unsqueeze(0))
        given = [Given(_mask(one, rows), *angles[self._types[at]]) for one, at in zip(kept, self._firsts, strict=True)]
        y = self._run.at_once(x, given, cache)
        return None if y is None else self._head(self._norm(y)[:, -keep:])

    def _angles_by_type(self, x: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return cosines and sines (1, M, D) of rows x (1, M, K) at positions (1, M), by type of layer."""
        which = {one: {LAYER_TYPE: one} if one else {} for one in set(self._types)}
        return {one: self._angles(x, position_ids=positions, **chosen) for one, chosen in which.items()}


def straight_pass(module: Any, runs: Sequence[LayerRun], layers: Sequence[nn.Module]) -> StraightPass | None:
    """Return the straight pass of a model on the CPU, to be compared; None if no single run holds all its layers."""
    usual = all(hasattr(module.base_model, name) for name in (ANGLES, NORM))
    whole = len(runs) == 1 and len(runs[0]) == len(layers)
    if not whole or not usual or module.get_output_embeddings() is None or not takes_our_masks(module):
        return None
    types = _types(module, module.base_model.rotary_emb)
    alike = all(len({types[place] for place in places}) == 1 for places in runs[0].kinds)
    return StraightPass(module, runs[0]) if alike else None


def _types(module: Any, angles: nn.Module) -> list[str]:
    """Return by layer the type for which its angles are made; empty if all layers have the same."""
    config = text_config(module.config)
    differ = LAYER_TYPE in inspect.signature(angles.forward).parameters
    return list(config.layer_types) if differ else [""] * config.num_hidden_layers


def _mask(kept: PreallocatedLayer, rows: int) -> Tensor | None:
    """Return the mask (1, 1, rows, held + rows) of new tokens after those that a layer sees; one row needs none."""
    if rows == 1:
        return None
    held = min(kept.length, kept.window - 1) if kept.window else kept.length
    # torch's threads, once awake, keep cores from ours: eight rows of a small model then took half as long again.
    with one_thread():
        seen = torch.ones(rows, held + rows, dtype=torch.bool).tril(held)
        return (seen.triu(held - kept.window + 1) if kept.window else seen)[None, None]
