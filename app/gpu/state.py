"""State of the graphics card page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.errors import HeteGenError
from core.gpu_runtime.install import Advance
from core.graphics.card import GraphicsCard

if TYPE_CHECKING:
    from core.gpu_runtime.wheel_selection import Needed

Phase = Literal["unknown", "none", "built_in", "hindered", "offer", "asking", "found", "fetching", "paused", "trying"]
Stage = Phase | Literal["ready", "used", "unused", "removing", "leaving"]


@dataclass(frozen=True)
class GpuState:
    """What is known of the graphics card and its runtime.

    `card`: the card that the page is about. `error`: why the last step failed, or the card cannot be used; `why`: why
    an installed runtime is not used. Stages: unknown (not asked yet), none (no card), built_in (the installed torch
    supports the card), hindered (there is a card, but it cannot be used), offer, asking the indexes, found what is
    needed, fetching, paused, trying, ready for a restart, used, unused, removing, leaving at the next start.
    """

    stage: Stage = "unknown"
    card: GraphicsCard | None = None
    needed: Needed | None = None
    advance: Advance | None = None
    error: HeteGenError | None = None
    version: str = ""
    device: str = ""
    why: str = ""
    size: int = 0
