"""What a layout is made for. The machine is not part of it: one job is priced on each card and on the processor."""

from __future__ import annotations

from dataclasses import dataclass

from core.planning.cost_model import TYPICAL_CONTEXT
from core.spec import Budget, Format, ModelSpec, Strategy


@dataclass(frozen=True)
class Job:
    """A model in a format with a context in tokens, to be placed within a budget by a strategy."""

    spec: ModelSpec
    format: Format
    budget: Budget
    strategy: Strategy
    context: int

    @property
    def occupied(self) -> int:
        """Return the tokens in the KV cache for which predicted times hold."""
        return min(self.context, TYPICAL_CONTEXT)
