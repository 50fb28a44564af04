"""A reply's receipt: who wrote it, how, and how fast."""

from __future__ import annotations

from core.events import Loaded, Sampling, Stats
from core.sentence import pack


def receipt(model: Loaded | None, stats: Stats, sampling: Sampling) -> dict[str, object]:
    """Return the figures of a reply by name, as JSON values. Rates in tokens per second, times in seconds."""
    return {
        "model": model.name if model else "",
        "format": model.format if model else "",
        "plan": pack(model.plan_reason) if model else "",
        "tok_s": stats.mean_tok_s,
        "ttft_s": stats.ttft_s,
        "prompt_tok_s": stats.prompt_tok_s,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "new_tokens": stats.new_tokens,
        "seed": stats.seed,
        "sampling": {name: value for name, value in vars(sampling).items() if value not in (None, ())},
    }
