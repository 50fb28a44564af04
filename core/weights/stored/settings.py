"""What quantising programs say of a checkpoint, in config.json or beside it: read with care, for anybody writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Settings = Mapping[str, Any]
Parts = Mapping[str, Tensor]
"""A weight's tensors by what they are to it: codes, scales, zeros and so on. On the meta device, only what is needed to
know the weight's shape and storage is computed."""


def weight_groups(settings: Settings) -> Iterator[Settings]:
    """How each group of modules has its weights, where compressed-tensors says so."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def weight_settings(settings: Settings) -> Settings:
    """The first group's, {} where there is none."""
    return next(weight_groups(settings), {})


def number(settings: Settings, *names: str) -> int:
    """The first of these settings that is a number, 0 where none is."""
    found = (settings.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)
