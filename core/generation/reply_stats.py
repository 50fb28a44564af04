"""Timing statistics of one reply."""

from __future__ import annotations

import time
from collections import deque

from core.events import Stats

# The current speed is the mean over the last tokens, at most this many.
WINDOW_TOKENS = 16


class Clock:
    """Counts tokens and time from its creation on, at the start of a request."""

    def __init__(self, prompt_tokens: int, context: int, seed: int | None) -> None:
        self._began = time.perf_counter()
        self._prompt_tokens = prompt_tokens
        self._context = context
        self._seed = seed
        self._reused = 0
        self._prefill_s: float | None = None
        self._first_at: float | None = None
        self._reported_at = 0.0
        self._recent: deque[float] = deque(maxlen=WINDOW_TOKENS + 1)
        self.new_tokens = 0

    def prefilled(self, done: int, reused: int) -> None:
        """Record that `done` prompt tokens have been read, `reused` of them from the cache."""
        self._reused = reused
        if done == self._prompt_tokens:
            self._prefill_s = time.perf_counter() - self._began

    def token(self) -> None:
        """Record that a token was drawn now."""
        now = time.perf_counter()
        if self._first_at is None:
            self._first_at = now
        self.new_tokens += 1
        self._recent.append(now)

    def due(self, every_s: float) -> bool:
        """Return whether `every_s` seconds have passed since this last returned True."""
        now = time.perf_counter()
        if now - self._reported_at < every_s:
            return False
        self._reported_at = now
        return True

    def stats(self) -> Stats:
        """Return the figures so far: seconds, tokens and tokens per second."""
        return Stats(
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            new_tokens=self.new_tokens,
            ttft_s=None if self._first_at is None else self._first_at - self._began,
            prompt_tok_s=_rate(self._prompt_tokens - self._reused, self._prefill_s),
            tok_s=_rate(len(self._recent) - 1, self._recent[-1] - self._recent[0]) if self._recent else None,
            mean_tok_s=self._mean(),
            context_used=self._prompt_tokens + self.new_tokens,
            context_limit=self._context,
            seed=self._seed,
        )

    def _mean(self) -> float | None:
        # The first token belongs to the prefill; decoding starts after it.
        if self._first_at is None:
            return None
        return _rate(self.new_tokens - 1, self._recent[-1] - self._first_at)


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if seconds and count > 0 else None
