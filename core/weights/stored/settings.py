"""What quantising programs state about a checkpoint, in config.json or beside it. Untrusted: anybody can write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Settings = Mapping[str, Any]
Parts = Mapping[str, Tensor]
"""A weight's tensors by role: codes, scales, zeros and so on. On the meta device, only what determines the weight's
shape and storage is computed."""


def weight_groups(settings: Settings) -> Iterator[Settings]:
    """Yield the weight settings of each group of modules, where compressed-tensors defines groups."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def weight_settings(settings: Settings) -> Settings:
    """Return the first group's weight settings, {} if there are none."""
    return next(weight_groups(settings), {})


def number(settings: Settings, *names: str) -> int:
    """Return the first of these settings that is an integer, 0 if none is."""
    found = (settings.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)
