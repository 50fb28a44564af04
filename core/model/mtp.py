"""A checkpoint's head for multi-token prediction (MTP) as a model of its own; transformers does not load it.

An MTP head is one more decoder layer. Its input joins the model's state of a token (after the last norm) with the
embedding of the next token; its output passes a norm of its own and the model's output head, and predicts the token
after that. Fed with its own output in place of the model's, it predicts further ahead.

Two layouts are published: `mtp.*` (Qwen3-Next, 3.5, 3.6), and one layer more than config.json counts (GLM, DeepSeek).
GGUF files use the latter for every model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import HeteGenError
from core.model.blueprint import build, decoder_layers
from core.model.gguf_source import open_head
from core.model.language_half import text_config
from core.model.model_source import Source
from core.model.ties import found_outside_layers, tie_weights
from core.weights.gguf.weights import GgufWeights

PART = "mtp"
"""Distinguishes the head's conversions and surveys from those of the model in the same files."""
BESIDE = "mtp."
LAYER_BEHIND = re.compile(r"(?:^|.*\.)layers\.(\d+)\.eh_proj\.weight$")
JOIN = {
    "fc.": "join.eh_proj.", "pre_fc_norm_embedding.": "join.enorm.", "pre_fc_norm_hidden.": "join.hnorm.",
    "eh_proj.": "join.eh_proj.", "enorm.": "join.enorm.", "hnorm.": "join.hnorm.",
    "norm.": "norm.", "shared_head.norm.": "norm.",
}  # fmt: skip
"""Our names of the parts around the layer, by their published names."""
SHARED = ("embed_tokens.", "shared_head.head.")
"""Copies of the model's own table and head that some checkpoints repeat."""
FULL_ATTENTION = "full_attention"
ALL_ALIKE: Mapping[str, Any] = {"first_k_dense_replace": 0, "mlp_only_layers": [], "decoder_sparse_step": 1}
"""Settings that make early layers of a mixture of experts dense, reset because the head's layer never is."""


class Join(nn.Module):
    """Computes the layer's input (1, n, H) from the tokens' embeddings and `states`, those of the tokens before."""

    def __init__(self, norm: nn.Module, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.enorm, self.hnorm = deepcopy(norm), deepcopy(norm)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False, device="meta", dtype=dtype)
        self.states: Tensor | None = None

    def forward(self, embedded: Tensor) -> Tensor:
        """Join embeddings (1, n, H) with `states` (n, H); return (1, n, H)."""
        before = embedded if self.states is None else self.states.to(embedded).unsqueeze(0)
        joined: Tensor = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(before)], dim=-1))
        return joined


def open_mtp(source: Source) -> Source | None:
    """Open the MTP head in this model's files as a source; None if there is none that is supported."""
    try:
        if isinstance(source.weights, GgufWeights):
            return _of_gguf(source, source.weights)
        return _of_checkpoint(source) if source.folder is not None else None
    except HeteGenError:  # a layer of a different kind than the model's own
        return None


def join_of(module: Any) -> Join:
    """Return the module of a head's tree that receives the model's states."""
    found: Join = module.base_model.join
    return found


def _of_checkpoint(source: Source) -> Source | None:
    names = dict(_renamed(source))
    module = _tree(source) if "model.join.eh_proj.weight" in names else None
    if module is None:
        return None
    prefix = f"{module.base_model_prefix}."
    weights = Renamed(source.weights, {ours.replace("model.", prefix, 1): name for ours, name in names.items()})
    tie_weights(module, weights, weights)
    nbytes = sum(weights[name].nbytes for name in weights)
    return replace(
        source, name=_title(source), module=module, weights=weights, nbytes=nbytes, packed={}, stored={},
        stored_as="", part=PART,
    )  # fmt: skip


def _of_gguf(source: Source, weights: GgufWeights) -> Source | None:
    module = _tree(source) if weights.has_head else None
    if module is None:
        return None
    head = open_head(weights, module)
    return replace(
        source, name=_title(source), module=module, weights=head.weights, nbytes=head.weights.nbytes,
        packed=head.packed, stored=head.stored, part=PART, tables_in_file=head.tables_in_file,
    )  # fmt: skip


def _title(source: Source) -> str:
    return f"{source.name} MTP"


def _tree(source: Source) -> Any | None:
    """Build a model with one layer of the source's kind after a Join; None if it lacks the expected parts."""
    module = build(_config(source.module.config), source.module.dtype)
    base, layers = module.base_model, decoder_layers(module)
    if len(layers) != 1 or not isinstance(getattr(base, "norm", None), nn.Module):
        return None
    base.join = Join(base.norm, text_config(module.config).hidden_size, module.dtype)
    base.join.eval().requires_grad_(False)
    layers[0].register_forward_pre_hook(lambda layer, given: (base.join(given[0]), *given[1:]))
    return module


class Renamed(Mapping[str, Tensor]):
    """Some tensors of a checkpoint under other names."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _config(config: Any) -> Any:
    """Return the configuration of a model with one layer, of the kind of the last layer with full attention."""
    text = deepcopy(text_config(config))
    layers = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or []
    chosen = max((index for index, kind in enumerate(kinds) if kind == FULL_ATTENTION), default=layers - 1)
    by_layer = {
        name: value for name, value in vars(text).items() if isinstance(value, list | tuple) and len(value) == layers
    }
    for name, value in by_layer.items():
        setattr(text, name, [value[chosen]])
    for name, value in ALL_ALIKE.items():
        if hasattr(text, name):
            setattr(text, name, deepcopy(value))
    text.num_hidden_layers = 1
    text.part = PART
    return text


def _renamed(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the head's tensors by their names in our tree, each with its name in the files."""
    layers = text_config(source.module.config).num_hidden_layers
    behind = next((name for name in source.weights if _number(name) == layers), "")
    beside = f"{BESIDE}fc.weight" in source.weights
    stem = BESIDE if beside else behind.removesuffix("eh_proj.weight")
    if not stem:
        return
    for name in source.weights:
        if name.startswith(stem) and (ours := _place(name.removeprefix(stem), beside=beside)):
            yield f"model.{ours}", name
    yield from _ends(source)


def _number(name: str) -> int:
    found = LAYER_BEHIND.match(name)
    return int(found[1]) if found else -1


def _place(rest: str, *, beside: bool) -> str:
    """Return a tensor's name in our tree; empty for the model's own tensors and for layers after the first."""
    if rest.startswith(SHARED):
        return ""
    for theirs, ours in JOIN.items():
        if rest.startswith(theirs):
            return ours + rest.removeprefix(theirs)
    if not beside:
        return f"layers.0.{rest}"
    return rest if rest.startswith("layers.0.") else ""


def _ends(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the model's own table and head."""
    module = source.module
    paths = {id(child): name for name, child in module.named_modules()}
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    ours = {f"{paths[id(head)]}.weight": "lm_head.weight", f"{paths[id(table)]}.weight": "model.embed_tokens.weight"}
    for target, name in found_outside_layers(module, source.weights, ours):
        yield ours[target], name
