"""The prompt of a reply: a request to token ids, with as much of the conversation as fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.errors import BadRequest, PromptTooLong
from core.events import Message, Request, Truncated
from core.generation import context_window
from core.generation.tokenizer import Tokenizer
from core.layers.kv_cache import common_prefix
from core.runtime.loaded_model import LoadedModel
from core.sentence import sentence


@dataclass(frozen=True)
class Prompt:
    """Token ids that end with those `carried` over from an unfinished reply, if it is continued.

    `truncated`: what was left out of the conversation.
    """

    ids: list[int]
    carried: list[int] = field(default_factory=list)
    truncated: Truncated | None = None

    @property
    def asked(self) -> list[int]:
        """The ids before the reply."""
        return self.ids[: len(self.ids) - len(self.carried)]


def read_prompt(loaded: LoadedModel, request: Request, max_new_tokens: int | None) -> Prompt:
    """Return the prompt, and turn the KV cache to it. Raises BadRequest, NoChatTemplate, PromptTooLong.

    The cached ids of the last reply are used where they stand for the same text.
    """
    whole = request.prompt is not None or request.whole
    prompt = _whole(loaded, request) if whole else _recent(loaded, request, max_new_tokens)
    loaded.turn_to(prompt.ids, request.conversation)
    tokens, start = loaded.cache.tokens, loaded.reply_start
    if 0 < start <= common_prefix(tokens, prompt.ids):
        prompt = replace(prompt, ids=tokenizer_of(loaded).splice(prompt.ids, tokens[start:], start))
    loaded.reply_start = len(prompt.ids)
    return prompt


def prompt_ids(loaded: LoadedModel, request: Request) -> list[int]:
    """Return the ids of a request's whole prompt. Raises BadRequest, NoChatTemplate."""
    tokenizer = tokenizer_of(loaded)
    if request.prompt is None:
        messages = _checked(with_pictures_seen(loaded, request))
        return tokenizer.render(messages, continue_reply=request.continue_reply, tools=request.tools)
    if not (ids := tokenizer.encode_prompt(request.prompt)):
        raise _empty()
    return ids


def tokenizer_of(loaded: LoadedModel) -> Tokenizer:
    """Return a model's tokenizer. Raises BadRequest for a shape."""
    if loaded.tokenizer is None:
        raise BadRequest("A shape has random weights and no words.", "", "Load a real model to chat.")
    return loaded.tokenizer


def with_pictures_seen(loaded: LoadedModel, request: Request) -> Request:
    """Prepare a request's pictures: a model without vision ignores those of earlier turns. Raises BadRequest if the
    current question has one, ModelUnreadable, UnsupportedModel, NotEnoughMemory."""
    if not any(message.pictures for message in request.messages):
        return request
    question = next((one for one in reversed(request.messages) if one.role == "user"), request.messages[-1])
    if loaded.sees or question.pictures:
        loaded.open_vision()
        return request
    return replace(request, messages=tuple(replace(one, pictures=()) for one in request.messages))


def _whole(loaded: LoadedModel, request: Request) -> Prompt:
    """Return the prompt with nothing left out. Raises PromptTooLong if it does not fit into the context."""
    ids, context, carried = prompt_ids(loaded, request), loaded.cache.capacity, list[int]()
    if len(ids) >= context:
        raise PromptTooLong(
            sentence("The prompt is longer than the context: {} of {} tokens.", f"{len(ids):,}", f"{context:,}"),
            "",
            "Shorten it, or load the model with a longer context.",
        )
    if request.continue_reply:
        _, carried = tokenizer_of(loaded).render_unfinished(request.messages, request.tools)
    return Prompt(ids, carried)


def _recent(loaded: LoadedModel, request: Request, max_new_tokens: int | None) -> Prompt:
    """Return as much of the conversation as fits, dropping the oldest turns; an unfinished reply by its own ids."""
    capacity, tokenizer, said = loaded.cache.capacity, tokenizer_of(loaded), loaded.said
    messages = context_window.recent(_checked(request), loaded.source.remembered_turns)
    by_ids = said if said and request.continue_reply and said.is_last_of(request.messages) else None
    if by_ids and len(by_ids.prompt) + len(by_ids.drawn) <= context_window.room_for_prompt(capacity, max_new_tokens):
        return Prompt([*by_ids.prompt, *by_ids.drawn], by_ids.drawn)
    carried: list[int] = []

    def render(turns: Sequence[Message]) -> list[int]:
        if not request.continue_reply or turns[-1] is not messages[-1]:
            return tokenizer.render(turns, tools=request.tools)
        prompt, reply = tokenizer.render_unfinished(turns, request.tools)
        carried[:] = by_ids.drawn if by_ids else reply
        return [*prompt, *carried]

    ids, truncated = context_window.fit(messages, render, capacity, max_new_tokens)
    return Prompt(ids, carried, truncated)


def _checked(request: Request) -> tuple[Message, ...]:
    """Return the messages of a request that can be answered. Raises BadRequest."""
    last = request.messages[-1] if request.messages else None
    said = last is not None and (last.content.strip() or last.pictures)
    if last is None or not (said or request.continue_reply or last.role == "tool"):
        raise _empty()
    if (last.role == "system" and not request.whole) or (last.role == "assistant") != request.continue_reply:
        raise BadRequest("There is nothing to answer.", "The last message is not a question.", "Write a message first.")
    return request.messages


def _empty() -> BadRequest:
    return BadRequest("The message is empty.", "", "Write something first.")
