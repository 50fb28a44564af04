"""A model's chat template: which input it accepts, what it writes around answers and thoughts, and rendering.

Templates are programs by the models' authors with different requirements; which input one accepts is found by trying.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from core.errors import HeteGenError, NoChatTemplate
from core.events import Message, ToolCall
from core.files import without_halves
from core.generation.arrangement import arrangements, is_blank, is_plain
from core.generation.thought_tags import TAG, Marks, Pair
from core.sentence import sentence

BREAK = "\U000f0000"
"""Inserted into users' text wherever it looks like a control token or mark, so that neither the template nor the
tokenizer takes it for one. The tokenizer removes it."""

# Placeholders for a question, an answer etc. in trial renderings.
_PROBES = [f"\ue0f0{number}\ue0f1" for number in range(4)]
_ASKED, _ANSWERED, _THOUGHT, _NEXT = _PROBES
_AS_DATA = re.compile(r"""['"]text['"]:\s*['"]\s*\ue0f0""")
_TALK = (Message("user", _ASKED), Message("assistant", _ANSWERED), Message("user", _NEXT))


class TemplateRefusal(Exception):
    """A template's refusal to render a conversation, with its message."""


@dataclass(frozen=True)
class Around:
    """What a template writes around the parts of a reply.

    `thought`: what it writes before and after a thought; `answer`: between the prompt's end and an answer without a
    thought; `end`: after an answer. None = unknown.
    """

    thought: Pair | None
    answer: str | None
    end: str


class ChatTemplate:
    """A template with the variables passed to it."""

    def __init__(self, source: str, variables: Mapping[str, Any], control_tokens: Sequence[str] = ()) -> None:
        """`variables`: special tokens by name; `control_tokens`: texts to break up inside of users' text."""
        self.source = source.removeprefix("\ufeff")
        self._variables = dict(variables)
        marks: dict[str, list[str]] = {}
        for text in {*control_tokens, *TAG.findall(self.source)}:
            if len(text) > 1:
                marks.setdefault(text[:2], []).append(text)
        self._marks = {begin: tuple(texts) for begin, texts in marks.items()}
        # Some models have thousands of control tokens: search only where the first two characters of one match.
        begins = "|".join(re.escape(text) for text in self._marks)
        self._begins = re.compile(f"(?={begins})." if begins else "(?!)", re.DOTALL)

    def guard(self, text: str) -> str:
        """Return users' text with a BREAK inside of every mark of the template."""
        text = _sound(text)

        def broken(found: re.Match[str]) -> str:
            place = found.start()
            is_mark = text.startswith(self._marks[text[place : place + 2]], place)
            return f"{found[0]}{BREAK}" if is_mark else found[0]

        return self._begins.sub(broken, text)

    def _guarded(self, value: Any) -> Any:
        match value:
            case str():
                return self.guard(value)
            case list() | tuple():
                return [self._guarded(item) for item in value]
            case dict():
                return {key: self._guarded(item) for key, item in value.items()}
            case _:
                return value

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Render a conversation to text that ends where the model's reply begins. Raises NoChatTemplate.

        `options` are passed to the template. Uses the least changed arrangement whose messages all appear in the text.
        """
        sound = [
            replace(message, content=_sound(message.content), reasoning=_sound(message.reasoning))
            for message in messages
        ]
        refusals: list[TemplateRefusal] = []
        fallback: str | None = None
        for arranged in arrangements(sound):
            try:
                text = self._apply(arranged, add_generation_prompt=True, **options)
            except TemplateRefusal as error:
                refusals.append(error)
                continue
            if _holds(text.replace(BREAK, ""), arranged):
                return text
            trial = self._trial(arranged, options)
            if _holds(*trial):
                return text
            if fallback is None and trial[1][-1].content in trial[0]:
                fallback = text
        if fallback is None:
            raise _refused(refusals[0] if refusals else None) from (refusals[0] if refusals else None)
        return fallback

    def reply_text(self, reply: Message, marks: Marks, closing: str) -> str:
        """Return the text of an unfinished reply as the model wrote it after the prompt.

        `closing`: the closing mark of a thought that the prompt opened. The template is not used, because many drop
        thoughts or close them.
        """
        if is_blank(reply) and not reply.reasoning:
            return ""
        opened, closed = self.thought_text(marks)
        if not reply.reasoning:
            return (closed if closing else self.around.answer or "") + self.guard(reply.content)
        thought = ("" if closing else opened) + self.guard(reply.reasoning)
        if not reply.content.strip():
            return thought
        return thought.rstrip("\n") + closed + self.guard(reply.content)

    def thought_text(self, marks: Marks) -> Pair:
        """Return the text before and after a thought in a reply."""
        if self.around.thought is not None:
            return self.around.thought
        opening, closing = next((pair for pair in marks.thoughts if pair[0] in self.source), marks.thoughts[0])
        return f"{opening}\n", f"\n{closing}\n\n"

    @cached_property
    def around(self) -> Around:
        """Return what the template writes around an answer and a thought."""
        opening = self._try((_TALK[0],), add_generation_prompt=True) or ""
        plain = self._try(_TALK[:2]) or self._try(_TALK) or ""
        before, _, _ = plain.partition(_ANSWERED)
        answer = before[len(opening) :] if opening and before.startswith(opening) else None
        return Around(self._around_thought(opening), answer, self._after_answer())

    def _around_thought(self, opening: str) -> Pair | None:
        thinking = replace(_TALK[1], reasoning=_THOUGHT)
        for turns in ((_TALK[0], thinking), (_TALK[0], thinking, _TALK[2])):
            text = self._try(turns) or ""
            before, found, after = text.partition(_THOUGHT)
            if found and _ANSWERED in after:
                common = _common(opening, before)
                if not before[common:].strip():  # the prompt itself opens the thought
                    tags = list(TAG.finditer(before.rstrip()))
                    common = tags[-1].start() if tags else common
                return before[common:], after.partition(_ANSWERED)[0]
        return None

    def _after_answer(self) -> str:
        text = self._try(_TALK) or self._try(_TALK[:2]) or ""
        return text.partition(_ANSWERED)[2].partition(_NEXT)[0]

    def _trial(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[str, list[Message]]:
        """Render the same arrangement with placeholder texts; return the text and the messages."""
        trial = [
            replace(message, content=f"\ue0f0{number}\ue0f1") if message.content.strip() else message
            for number, message in enumerate(messages)
        ]
        return self._try(trial, add_generation_prompt=True, **options) or "", trial

    def _try(self, messages: Sequence[Message], **options: Any) -> str | None:
        try:
            return self._apply(messages, **options)
        except TemplateRefusal:
            return None

    def _apply(self, messages: Sequence[Message], **options: Any) -> str:
        as_text = any(message.tool_calls for message in messages) and self._arguments_as_text
        turns = [
            as_turn(message, in_parts=message.role in self._in_parts, arguments_as_text=as_text) for message in messages
        ]
        return self._run(self._guarded(turns), **self._guarded(options))

    def _run(self, turns: list[dict[str, Any]], **options: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template([turns], chat_template=self.source, **{**self._variables, **options})
        # Templates are programs by the model's author: they raise jinja2's errors and any of Python's.
        except Exception as error:
            words = str(error).strip()
            raise TemplateRefusal(words.splitlines()[0] if words else type(error).__name__) from error
        return str(texts[0])

    @cached_property
    def _in_parts(self) -> frozenset[str]:
        """Return the roles whose content this template expects as a list of parts, as vision models' templates do."""
        found: set[str] = set()
        for asked in ([_TALK[0]], list(_TALK), [Message("system", _THOUGHT), _TALK[0]]):
            role = asked[-2 if len(asked) > 1 else 0].role
            if not self._reads(asked, found) and self._reads(asked, found | {role}):
                found.add(role)
        return frozenset(found)

    @cached_property
    def _arguments_as_text(self) -> bool:
        """Return whether a call's arguments must be passed as JSON text: some templates insert them verbatim.

        Most templates take a mapping and serialise it.
        """
        written = [self._calling(arguments_as_text=as_text) for as_text in (False, True)]
        return (not written[0] or "{'place': 'here'}" in written[0]) and '{"place": "here"}' in written[1]

    def _calling(self, *, arguments_as_text: bool) -> str:
        """Render a conversation with a call; "" if the template refuses it."""
        call = ToolCall("call00001", "call", '{"place": "here"}')
        talk = (Message("user", _ASKED), Message("assistant", "", tool_calls=(call,)))
        try:
            return self._run([as_turn(message, arguments_as_text=arguments_as_text) for message in talk])
        except TemplateRefusal:
            return ""

    def _reads(self, messages: Sequence[Message], in_parts: set[str]) -> bool:
        try:
            text = self._run([as_turn(message, in_parts=message.role in in_parts) for message in messages])
        except TemplateRefusal:
            return False
        return all(message.content in text for message in messages) and not _AS_DATA.search(text)


def as_turn(message: Message, *, in_parts: bool = False, arguments_as_text: bool = False) -> dict[str, Any]:
    """Convert a message to the mapping that chat templates take."""
    read = str if arguments_as_text else _parsed
    content: Any = message.content
    if in_parts or message.pictures:
        said = [{"type": "text", "text": message.content}] if message.content or not message.pictures else []
        content = [*({"type": "image"} for _ in message.pictures), *said]
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning:
        turn |= {"reasoning_content": message.reasoning, "reasoning": message.reasoning}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": read(call.arguments)}}
            for call in message.tool_calls
        ]
    return turn | {"tool_call_id": message.tool_call_id} if message.tool_call_id else turn


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _sound(text: str) -> str:
    return without_halves(text).replace(BREAK, "")


def _holds(text: str, messages: Sequence[Message]) -> bool:
    """Return whether the rendered text contains the text of every plain and system message."""
    return all(m.content.strip() in text for m in messages if is_plain(m) or m.role == "system")


def _common(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _refused(error: TemplateRefusal | None) -> HeteGenError:
    if error is None:
        return NoChatTemplate(
            "This model's chat template leaves the question out.",
            "What it would write for the model does not contain it.",
            "Choose another model.",
        )
    return NoChatTemplate(
        "This model's chat template refuses the conversation.",
        sentence("It says: {}.", error),
        "Start a new conversation, or choose another model.",
    )
