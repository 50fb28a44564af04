"""Maps a checkpoint's tensors to the module tree by transformers' own renamings and conversions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from core.errors import ModelUnreadable
from core.model.blueprint import decoder_layers
from core.model.language_half import text_config
from core.sentence import sentence

OLD_BUFFERS = re.compile(
    r"rotary_emb\.|inv_freq|(^|[._])masked_bias$|(attn|attention)\.bias$|position_ids$|[._](q|k|v|kv|qk)_scale$|\.version$"
)
"""Non-weights that checkpoints hold: positions, causal masks, scales of an 8-bit KV cache."""
MORE_TOKENS = re.compile(r"(^|[._])(mtp|nextn|eagle|medusa)|eh_proj|enorm|hnorm|shared_head")
"""Weights for multi-token prediction (MTP)."""
MORE_LAYERS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
    "mtp_num_layers",
    "num_mtp_modules",
)
"""Settings that announce such weights as layers after the last one."""


BY_EXPERT = {"MergeModulelist", "Concatenate"}
"""transformers' conversion steps that can be applied to one expert at a time."""
EXPERT = re.compile(r"\.experts\.\d+\.")


class WeightNames:
    """The names in a checkpoint and in a module tree."""

    def __init__(self, module: Any, *, own_names: bool = False) -> None:
        """`own_names`: the checkpoint uses the tree's names, so that nothing is renamed or converted."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = [] if own_names else get_model_conversion_mapping(module)
        self.expected: dict[str, Tensor] = dict(module.state_dict())
        self._prefix = module.base_model_prefix
        self._own = getattr(module, "weights_prefix", "")
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}

    def target(self, source: str) -> tuple[str, str | None]:
        """Return a tensor's name in the tree, and the pattern of the conversion that merges it; None if there is
        none."""
        from transformers.core_model_loading import rename_source_key

        name = source.removeprefix(self._own)
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.expected)
        return (name, None) if target not in self.expected and name in self.expected else (target, pattern)

    def sources(self, names: Iterable[str]) -> dict[str, dict[str | None, list[str]]]:
        """Return what each parameter of the tree is made of: by conversion pattern, source names in natural order."""
        from transformers.core_model_loading import dot_natural_key

        found: dict[str, dict[str | None, list[str]]] = {}
        known: dict[str, tuple[str, str | None]] = {}
        for source in sorted(names, key=dot_natural_key):
            # Merged experts map like the first one: there may be tens of thousands.
            first = EXPERT.sub(".experts.0.", source)
            if first not in known:
                known[first] = self.target(first)
            target, pattern = known[first] if known[first][1] else self.target(source)
            if target in self.expected:
                found.setdefault(target, {}).setdefault(pattern, []).append(source)
        return found

    def expert_rows(self, pattern: str) -> Sequence[str]:
        """Return the patterns whose tensors' rows, concatenated, are an expert's matrix in the conversion of this
        pattern; () if it does something else."""
        converter = self._by_pattern[pattern]
        return tuple(converter.source_patterns) if merges_experts(converter) else ()

    def transforms(self, checkpoint: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return a conversion for each target of the tree, and, by source, targets that are not in the tree."""
        from transformers.core_model_loading import WeightRenaming, dot_natural_key

        work: dict[str, Any] = {}
        unasked: dict[str, str] = {}
        for source in sorted(checkpoint, key=dot_natural_key):
            target, pattern = self.target(source)
            if target not in self.expected:
                unasked[source] = target
                continue
            transform = WeightRenaming(source, target) if pattern is None else deepcopy(self._by_pattern[pattern])
            work.setdefault(target, transform).add_tensor(
                target, source, pattern or source, _reader(checkpoint, source)
            )
        return work, unasked


def merges_experts(transform: Any) -> bool:
    """Return whether a conversion merges experts by steps that process each independently."""
    steps = {type(step).__name__ for step in getattr(transform, "operations", ())}
    return "MergeModulelist" in steps and steps <= BY_EXPERT


def _reader(checkpoint: Mapping[str, Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint[name]


def check_unasked(module: Any, checkpoint: Mapping[str, Tensor], unasked: Mapping[str, str]) -> None:
    """Raise ModelUnreadable for tensors without a place in the tree that would change the language model's output.

    A vision tower, weights for multi-token prediction and old buffers are ignored.
    """
    ignored = _ignored(module)
    within = _inside(module)
    wrong = [
        source
        for source, target in unasked.items()
        if within(target) and not ignored.search(target) and not ignored.search(source)
        and not _changes_nothing(source, checkpoint)
    ]  # fmt: skip
    if wrong:
        raise ModelUnreadable(
            sentence("{} tensors of the weights have no place in the model that config.json describes.", len(wrong)),
            sentence("The first one is {}.", wrong[0]),
            "Choose the original version of the model.",
        )


def _ignored(module: Any) -> re.Pattern[str]:
    """Return a pattern of names that are known to be unused, here or in transformers."""
    own: set[str] = set()
    for child in module.modules():
        own |= set(getattr(child, "_keys_to_ignore_on_load_unexpected", None) or ())
    return re.compile("|".join(f"({pattern})" for pattern in (OLD_BUFFERS.pattern, MORE_TOKENS.pattern, *sorted(own))))


def _inside(module: Any) -> Callable[[str], bool]:
    """Return a predicate for names within the language model: in one of its layers, or beside one of its weights."""
    layers = decoder_layers(module)
    stem = next((name for name, child in module.named_modules() if layers and child is layers[0]), "0").rpartition(".")[
        0
    ]
    numbered = re.compile(re.escape(stem) + r"\.(\d+)\.") if stem else None
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters(remove_duplicate=False)} - {""}
    more = any(getattr(text_config(module.config), name, None) for name in MORE_LAYERS)

    def within(target: str) -> bool:
        found = numbered.match(target) if numbered else None
        if found is not None:
            return int(found[1]) < len(layers) or not more
        return target.rpartition(".")[0] in owners

    return within


def _changes_nothing(source: str, checkpoint: Mapping[str, Tensor]) -> bool:
    """Return whether it is an all-zero bias, which some converters write."""
    return source.endswith(".bias") and not checkpoint[source].any()
