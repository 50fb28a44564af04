"""/metrics: the server's counters in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from core.server.activity import Activity


def metrics_text(activity: Activity) -> str:
    """Return counters and gauges in Prometheus' text format."""
    return "\n".join(_lines(activity)) + "\n"


def _lines(activity: Activity) -> Iterator[str]:
    totals = activity.totals
    yield "# HELP hetegen_requests_total Requests answered, by path and status."
    yield "# TYPE hetegen_requests_total counter"
    for (path, status), number in sorted(totals.requests.items()):
        yield f'hetegen_requests_total{{path="{path}",status="{status}"}} {number}'
    yield from _one("prompt_tokens_total", "counter", "Tokens of prompts.", totals.prompt_tokens)
    yield from _one("reused_tokens_total", "counter", "Tokens of prompts found in a KV cache.", totals.reused_tokens)
    yield from _one("new_tokens_total", "counter", "Tokens of replies.", totals.new_tokens)
    yield from _one("requests_live", "gauge", "Requests that wait or are answered now.", activity.running)
    yield from _one("last_tokens_per_second", "gauge", "Decode speed of the last reply.", totals.last_tok_s)


def _one(name: str, kind: str, words: str, value: float) -> Iterator[str]:
    yield f"# HELP hetegen_{name} {words}"
    yield f"# TYPE hetegen_{name} {kind}"
    yield f"hetegen_{name} {value:g}"
