"""The size of a model's vision parts, known before they are opened for the first picture."""

from __future__ import annotations

from typing import Any

from core.errors import UnsupportedModel
from core.model.blueprint import whole_tree
from core.model.language_half import Nothing

HEARS = ("audio", "speech", "talker")
"""Words in the names of audio parts, which are never opened."""


def sight_bytes(module: Any) -> int:
    """Return the bytes of vision weights that this language half leaves out; 0 for a text-only model."""
    left_out = any(isinstance(child, Nothing) for child in module.modules())
    if not left_out or getattr(module.config, "vision_config", None) is None:
        return 0
    try:
        whole = whole_tree(module.config, module.dtype)
    except UnsupportedModel:
        return 0
    here = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    missing = [(name, value) for name, value in whole.named_parameters() if name not in here]
    return sum(value.numel() * value.dtype.itemsize for name, value in missing if not _hears(name))


def _hears(name: str) -> bool:
    return any(word in name for word in HEARS)
