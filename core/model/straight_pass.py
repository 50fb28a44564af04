"""The pass over a few tokens of a model on the CPU, without transformers' own forward.

What transformers does around the layers takes a noticeable part of a small model's token. What it gives to the layers,
and by which numbers it multiplies embeddings and logits, is learned from one of its passes; then
`LanguageModel.rehearse` compares straight passes bit for bit with ordinary ones before they are used. So no list of
supported architectures is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.fused_forward import LayerRun
from core.layers.kv_cache import KVCache
from core.model.captures import takes_our_masks
from core.model.straight_layers import LayersApart, Rotary, WholeRun
from core.model.watched_pass import Factor, Watched, factor_between, numbers_of, watched


@dataclass(frozen=True)
class Factors:
    """What multiplies the embeddings, the last norm's output, and the head's output."""

    embeddings: Factor
    states: Factor
    logits: Factor


class StraightPass:
    """Embeds ids, computes the layers, and the logits from the last norm's output.

    `proven`: whether comparisons have shown that it gives the same logits as ordinary passes.
    """

    def __init__(
        self, module: Any, layers: Sequence[nn.Module], norm: nn.Module, numbers: Sequence[float],
        through: WholeRun | LayersApart,
    ) -> None:  # fmt: skip
        """`module`: a causal language model with these `layers` and a last `norm`; `numbers`: see `numbers_of`."""
        self.proven = False
        self._module = module
        self._layers = layers
        self._table, self._head = module.get_input_embeddings(), module.get_output_embeddings()
        self._norm = norm
        self._numbers = numbers
        self._through = through
        self._factors: Factors | None = None

    @property
    def is_known(self) -> bool:
        """Whether all that an ordinary pass computes around the layers has been learned."""
        return self._factors is not None

    @contextmanager
    def learning(self, ids: Sequence[int], cache: KVCache) -> Iterator[None]:
        """Learn from an ordinary pass over these ids (n,), which is made while the context lasts."""
        with torch.inference_mode():
            rows = self._table(torch.tensor([list(ids)]))
            offer = self._through.offer(rows, cache)
            with watched(self._module, self._layers, self._norm) as seen:
                yield
            known = seen.is_whole() and self._through.learn(seen.calls, offer, cache)
            self._factors = self._learned(rows, seen) if known else None

    def logits(self, ids: Sequence[int], cache: KVCache, keep: int) -> Tensor | None:
        """Return (1, keep, vocabulary) after the next ids (n,); None for passes that must go the ordinary way."""
        factors = self._factors
        if factors is None or not cache.tokens or not self._through.takes(len(ids)):
            return None
        y = self._through(factors.embeddings(self._table(torch.tensor([list(ids)]))), cache)
        return None if y is None else factors.logits(self._head(factors.states(self._norm(y)[:, -keep:])))

    def _learned(self, rows: Tensor, seen: Watched) -> Factors | None:
        """Return the factors of a pass with these rows of the table (1, n, K); None if it does something else."""
        asked, logits = seen.asked[0], seen.logits[0]
        pairs = ((rows, seen.rows[0]), (seen.normed[0][:, -asked.shape[1] :], asked), (seen.scores[0], logits))
        found = [factor_between(before, after.to(before.dtype), self._numbers) for before, after in pairs]
        embeddings, states, scores = found
        return Factors(embeddings, states, scores) if embeddings and states and scores else None


def straight_pass(module: Any, runs: Sequence[LayerRun], layers: Sequence[nn.Module]) -> StraightPass | None:
    """Return the straight pass of a model on the CPU, to be compared; None if its parts are not the usual ones."""
    decoder = _decoder(module, layers)
    if decoder is None or module.get_output_embeddings() is None or not takes_our_masks(module):
        return None
    rotary = Rotary(module, decoder)
    known = (nn.ModuleList, type(module.get_input_embeddings()))
    others = [child for child in decoder.children() if not isinstance(child, known) and child is not rotary.module]
    if len(others) != 1:
        return None
    return StraightPass(module, layers, others[0], numbers_of(module, decoder), _through(runs, layers, rotary))


def _through(runs: Sequence[LayerRun], layers: Sequence[nn.Module], rotary: Rotary) -> WholeRun | LayersApart:
    """Return the way through the layers: in one call if a single run holds them all, with angles for each kind."""
    whole = len(runs) == 1 and len(runs[0]) == len(layers) and rotary.module is not None
    if whole and all(len({rotary.types[place] for place in places}) == 1 for places in runs[0].kinds):
        return WholeRun(runs[0], rotary)
    return LayersApart(layers, runs, rotary)


def _decoder(module: Any, layers: Sequence[nn.Module]) -> nn.Module | None:
    """Return the part of a model that holds the list of its layers; None if there is no such list."""
    lists = [one for one in module.modules() if isinstance(one, nn.ModuleList) and list(one) == list(layers)]
    return next((one for one in module.modules() if any(child in lists for child in one.children())), None)
