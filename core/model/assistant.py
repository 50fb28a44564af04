"""Gemma 4's assistant: a small model that drafts for a target and reads its keys and values instead of having its own.

A pass joins the target's embedding of the last token with a state: at first the target's own (after its last norm),
then what the assistant made of the token before. Each layer attends to the keys and values of the target's last layer
of the same kind (full or sliding attention) that has some. Nothing is added to them, so that all tokens of a draft are
guessed from one position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.errors import BadRequest, ModelUnreadable
from core.layers.kv_cache import KVCache
from core.model.blueprint import module_tree, raw_config
from core.model.language_half import text_config
from core.model.model_source import Source, find_model, open_source
from core.paths import SHAPE_PREFIX
from core.sentence import sentence
from core.weights.gguf.parts import gguf_in, is_gguf_file

KINDS = ("gemma4_assistant", "gemma4_unified_assistant")
SLIDING, LENDS = "sliding_attention", "store"
"""A kind of layer, and the sharing mode of a layer whose keys and values others read."""
ORDERING = "masked_embedding.token_ordering"

KeysValues = tuple[Tensor, Tensor]


class Lent(NamedTuple):
    """What a target lends for one draft.

    `table` looks up ids (1, n), (1, n, B); `state` (1, 1, B) is that of the token before the last; `states` are keys
    and values by kind of layer; `place` is the position of the last token.
    """

    table: Callable[[Tensor], Tensor]
    state: Tensor
    states: Mapping[str, KeysValues]
    place: int


class Scores(NamedTuple):
    """The result of a pass: `logits` (1, 1, vocabulary)."""

    logits: Tensor


class AssistantPass:
    """The forward of an assistant's tree. `begin` prepares a draft; before the first one, it computes with zeros."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._clusters = None if module.masked_embedding is None else ClusteredHead(module)
        self._lent: Lent | None = None

    def begin(self, lent: Lent) -> None:
        """Prepare a draft from what the target lends; `end` lets go of it."""
        self._lent = lent

    def end(self) -> None:
        """Let go of the target's states, which may be freed or moved."""
        self._lent = None

    def __call__(self, input_ids: Tensor, cache: Any = None, use_cache: bool = False) -> Scores:  # noqa: FBT001
        """Return the scores of the token after `input_ids`, of which only the last is read; `cache` stays empty."""
        module, last = self._module, input_ids[:, -1:]
        lent = self._lent or self._zeros()
        given = (one.to(last.device, module.dtype) for one in (lent.table(last), lent.state))
        read = module.model(
            inputs_embeds=module.pre_projection(torch.cat(list(given), dim=-1)),
            position_ids=torch.full_like(last, lent.place), shared_kv_states=dict(lent.states),
            attention_mask=dict.fromkeys(lent.states), use_cache=False,
        ).last_hidden_state  # fmt: skip
        state = module.post_projection(read)
        self._lent = None if self._lent is None else lent._replace(state=state)
        return Scores(module.lm_head(read) if self._clusters is None else self._clusters(read))

    def _zeros(self) -> Lent:
        config, dtype = self._module.config, self._module.dtype
        row = torch.zeros(1, 1, config.backbone_hidden_size, dtype=dtype)
        widths = _widths(text_config(config)).items()
        keys = {kind: torch.zeros(1, heads, 1, columns, dtype=dtype) for kind, (heads, columns) in widths}
        return Lent(lambda _: row, row, {kind: (one, one) for kind, one in keys.items()}, 1)


class ClusteredHead:
    """Scores only the tokens in the clusters that suit a state best, by rows of the table in RAM; others get -inf."""

    def __init__(self, module: Any) -> None:
        """Replace the output head of `module` by a table that is looked up."""
        head, self._clusters = module.lm_head, module.masked_embedding
        self._table = nn.Embedding(head.out_features, head.in_features, device="meta", dtype=head.weight.dtype)
        self._table.weight = head.weight
        module.lm_head = self._table

    def __call__(self, state: Tensor) -> Tensor:
        """Score all tokens for state (1, 1, H): (1, 1, vocabulary), in RAM."""
        clusters, here = self._clusters, state.flatten().cpu()
        best = clusters.centroids(state).topk(clusters.centroid_intermediate_top_k, dim=-1).indices.flatten()
        members = clusters.token_ordering.view(clusters.num_centroids, -1)
        ids = members[best.to(members.device)].flatten().long().cpu()
        scores = torch.full((1, 1, clusters.vocab_size), -torch.inf, dtype=here.dtype)
        scores[0, 0, ids] = self._table(ids) @ here
        return scores


def build_assistant(config: Any, dtype: torch.dtype) -> Any:
    """Build an assistant's module tree on the meta device. Raises UnsupportedModel, ModelUnreadable."""
    module = module_tree(config, dtype)
    if config.use_ordered_embeddings and text_config(config).vocab_size % config.num_centroids:
        raise ModelUnreadable(
            "config.json does not describe a model.", "Its clusters have different sizes.", "Download the model again."
        )
    module.forward = AssistantPass(module)
    return module


def open_assistant(name: str, target: Source) -> Source | None:
    """Open the assistant called `name` for the model `target`; None if `name` is another kind of model.

    Raises BadRequest if it was made for another model, and HeteGenError.
    """
    if not _is_assistant(name):
        return None
    # It computes with the target's states, so in their type.
    found = open_source(name, lambda config, _: build_assistant(config, target.module.dtype))
    if found.module.masked_embedding is not None and ORDERING not in found.weights:
        raise ModelUnreadable(
            sentence("{} of the model's tensors are missing.", 1), sentence("The first one is {}.", ORDERING),
            "Download the model again.",
        )  # fmt: skip
    if why := _misfit(found.module.config, text_config(target.module.config)):
        raise BadRequest(
            sentence("{} cannot draft for this model.", found.name), why,
            "Choose the assistant that was published for this model.",
        )  # fmt: skip
    return found


def pass_of(module: Any) -> AssistantPass:
    """Return the forward of an assistant's filled tree. Raises ModelUnreadable if its clusters name no real tokens."""
    made: AssistantPass = module.forward
    if (clusters := module.masked_embedding) is not None:
        first, last = clusters.token_ordering.aminmax()
        if int(first) < 0 or int(last) >= clusters.vocab_size:
            raise ModelUnreadable(
                sentence("The weight {} has values that are out of range.", ORDERING), "", "Download the model again."
            )
    return made


def lent_by(config: Any, cache: KVCache, window: int) -> dict[str, KeysValues]:
    """Return the keys and values that a target with this configuration lends: all, or the newest of a `window`."""
    return {
        kind: cache.layers[layer].lend(window + 1 if kind == SLIDING else cache.capacity)
        for kind, layer in _lenders(text_config(config)).items()
    }


def _is_assistant(name: str) -> bool:
    if name.startswith(SHAPE_PREFIX):
        return False
    folder = find_model(name)
    if is_gguf_file(folder) or gguf_in(folder) is not None:
        return False
    return raw_config(folder).get("model_type") in KINDS


def _misfit(assistant: Any, target: Any) -> str:
    """Return why an assistant cannot read the states of a target with this language configuration; "" if it can."""
    own = text_config(assistant)
    lenders = _lenders(target)
    if not set(own.layer_types) <= lenders.keys():
        return "It only drafts for models of the Gemma 4 family."
    widths = {kind: _width(target, layer) for kind, layer in lenders.items()}
    alike = all(widths[kind] == width for kind, width in _widths(own).items())
    if alike and (assistant.backbone_hidden_size, own.vocab_size) == (target.hidden_size, target.vocab_size):
        return ""
    return "It was made for a model of another size."


def _lenders(config: Any) -> dict[str, int]:
    """Return the last layer of each kind that has keys and values of its own; {} in families that do not share them."""
    modes = getattr(config, "kv_sharing_modes", None) or []
    return {config.layer_types[layer]: layer for layer, mode in enumerate(modes) if mode == LENDS}


def _widths(config: Any) -> dict[str, tuple[int, int]]:
    return {kind: _width(config, layer) for layer, kind in enumerate(config.layer_types)}


def _width(config: Any, layer: int) -> tuple[int, int]:
    """Return the number of key heads of a layer, and their columns."""
    own = config.per_layer_config[layer]
    return own.num_key_value_heads, own.head_dim
