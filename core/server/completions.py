"""POST /v1/completions: continues a plain text."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from core.events import Drawn, Finished, Piece, Request
from core.server.asked import only_one, stops
from core.server.chat import finish_reason, sampling_of, usage
from core.server.errors import ApiError
from core.server.exchange import Exchange, WholeReply
from core.server.schemas import Completion
from core.server.service import timings
from core.server.sse import DONE, data

DEFAULT_TOKENS = 16


def to_request(wish: Completion) -> Request:
    """Convert to the engine's request. Raises ApiError."""
    only_one(wish)
    if wish.best_of not in (None, 1):
        raise ApiError(400, "Only one reply can be made at a time: best_of must be 1.", param="best_of")
    if wish.suffix:
        raise ApiError(400, "Texts cannot be filled in the middle: suffix must be empty.", param="suffix")
    return Request(
        (), sampling_of(wish, wish.max_tokens or DEFAULT_TOKENS), stops(wish.stop), prompt=_prompt(wish), whole=True,
        logprobs=wish.logprobs,
    )  # fmt: skip


def _prompt(wish: Completion) -> str:
    prompts = wish.prompt if isinstance(wish.prompt, list) else [wish.prompt or ""]
    if len(prompts) != 1 or not prompts[0]:
        raise ApiError(400, "Exactly one prompt that is not empty is needed.", param="prompt")
    return prompts[0]


def whole(answer: WholeReply, model: str, wish: Completion) -> dict[str, Any]:
    """Return the JSON object of a text that is not streamed."""
    text = (_prompt(wish) if wish.echo else "") + answer.text
    reason = finish_reason(answer.reason, False)
    return _head(model) | {
        "choices": [_choice(text, reason, answer.drawn if wish.logprobs is not None else None)],
        "usage": usage(answer.stats),
        "timings": timings(answer.stats),
    }


async def chunks(exchange: Exchange, model: str, wish: Completion) -> AsyncIterator[bytes]:
    """Yield the text as a stream."""
    with_usage = bool(wish.stream_options and wish.stream_options.include_usage)
    head = _head(model) | ({"usage": None} if with_usage else {})
    drawn: list[Drawn] = []
    if wish.echo:
        yield data(head | {"choices": [_choice(_prompt(wish), None, None)]})
    async for event in exchange:
        match event:
            case Drawn():
                drawn.append(event)
            case Piece(text):
                yield data(head | {"choices": [_choice(text, None, drawn if wish.logprobs is not None else None)]})
                drawn = []
            case Finished(reason, stats):
                last = _choice("", finish_reason(reason, False), drawn or None)
                yield data(head | {"choices": [last], "timings": timings(stats)})
                if with_usage:
                    yield data(head | {"choices": [], "usage": usage(stats)})
    yield DONE


def _choice(text: str, reason: str | None, drawn: Sequence[Drawn] | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": _logprobs(drawn), "finish_reason": reason}


def _logprobs(drawn: Sequence[Drawn] | None) -> dict[str, Any] | None:
    if drawn is None:
        return None
    return {
        "tokens": [one.text for one in drawn],
        "token_logprobs": [max(one.logprob, -9999.0) for one in drawn],
        "top_logprobs": [{text: max(value, -9999.0) for text, value in one.top} for one in drawn],
    }


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": model,
    }  # fmt: skip
