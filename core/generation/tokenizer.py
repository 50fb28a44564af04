"""The border between text and ids: messages to ids through the chat template, ids to a stream of whole characters.

The only module that knows both text and ids. Control tokens in users' text are encoded as plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from core.errors import NoChatTemplate
from core.events import Message, Tool
from core.files import without_halves
from core.generation.arrangement import is_plain, joined
from core.generation.chat_template import BREAK, ChatTemplate
from core.generation.template_files import find_template
from core.generation.text_stream import TextStream, byte_tokens
from core.generation.thought_tags import TAG, Marks, marks_of
from core.generation.tokenizer_files import read_tokenizer
from core.generation.tool_formats import as_functions, in_words, knows_tools
from core.layers.kv_cache import common_prefix
from core.model.model_source import Source

# A reply that is rendered and encoded again may differ in length by about this many ids from the drawn ones.
SPLICE_REACH = 64
# Number of ids at the end of a prompt that may belong to a mark.
MARK_IDS = 24
# End-of-turn tokens of the model families; many tokenizer files declare only <|endoftext|> as the end.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>")


class PictureText(Protocol):
    """Expands pictures (given as the contents of their files) in the text and ids of a vision model's prompt."""

    def expand(self, text: str, shown: Sequence[bytes]) -> str:
        """Return a rendered conversation with all placeholder tokens of its pictures."""

    def numbered(self, ids: Sequence[int], shown: Sequence[bytes]) -> list[int]:
        """Return the ids of such a text, with the placeholder ids of each picture replaced by its own."""


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, backend: Any, eos_ids: Iterable[int] = (), folder: Path | None = None) -> None:
        """`folder`: searched for a chat template that the tokenizer's own files do not name."""
        self.backend = backend
        """The tokenizer object of transformers."""
        self.vision: PictureText | None = None
        source = find_template(folder, getattr(backend, "chat_template", None))
        self._template = _template(backend, source)
        with_tools = find_template(folder, getattr(backend, "chat_template", None), for_tools=True)
        self._tool_template = _template(backend, with_tools) if with_tools else self._template
        self.stop_ids = frozenset(eos_ids) | self._own_stop_ids()
        self._hidden_ids = self._find_hidden_ids()
        self._byte_ids = byte_tokens([_id_of(backend, f"<0x{value:02X}>") for value in range(256)], self._spelled)

    def same_ids(self, other: Tokenizer) -> bool:
        """Return whether both tokenizers have the same vocabulary."""
        mine, others = self.backend.get_vocab(), other.backend.get_vocab()
        return bool(mine == others)

    def agrees_with(self, other: Tokenizer) -> bool:
        """Return whether tokens that both know have the same ids; either may have further ones."""
        mine, others = self.backend.get_vocab(), other.backend.get_vocab()
        return all(mine.get(token, id) == id for token, id in others.items())

    @classmethod
    def load(cls, folder: Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
        """Read the tokenizer files of a model folder. Raises ModelUnreadable."""
        return cls(read_tokenizer(folder), eos_ids, folder)

    @classmethod
    def of(cls, source: Source) -> Tokenizer | None:
        """Return the tokenizer of a model; None if it has none. Raises ModelUnreadable, UnsupportedModel."""
        if source.make_tokenizer is not None:
            return cls(source.make_tokenizer(), source.stop_ids)
        return None if source.folder is None else cls.load(source.folder, source.stop_ids)

    @property
    def can_chat(self) -> bool:
        """Return whether the model has a chat template."""
        return bool(self._template.source)

    @property
    def template(self) -> str:
        """Return the chat template's source; "" if there is none."""
        return self._template.source

    @property
    def tool_template(self) -> str:
        """Return the source of the template that renders conversations with tools."""
        return self._tool_template.source

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Return the tokens added to the vocabulary, including control tokens, with their ids."""
        return dict(self.backend.get_added_vocab())

    @property
    def serialized(self) -> str:
        """Return the tokenizer in the JSON format of the `tokenizers` library; "" if it is not of that library."""
        inner = getattr(self.backend, "backend_tokenizer", None)
        return "" if inner is None else str(inner.to_str())

    @cached_property
    def marks(self) -> Marks:
        """Return the marks of thoughts and answers that this model's replies may contain."""
        thought = self._template.around.thought if self.can_chat else None
        stripped = (thought[0].strip(), _first_mark(thought[1])) if thought else None
        added = self.backend.get_added_vocab()
        return marks_of(self._template.source, added, stripped if stripped and all(stripped) else None)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text to be continued verbatim: no template, but with the beginning-of-text token."""
        return [int(i) for i in self.backend.encode(without_halves(text), add_special_tokens=True)]

    def encode(self, text: str) -> list[int]:
        """Encode plain text, without template and special tokens."""
        return list(self.backend.encode(without_halves(text), add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Decode all of `ids` at once, without special tokens except the marks of thoughts."""
        if self._byte_ids:
            stream = self.stream()
            return "".join([*map(stream.push, ids), stream.finish()])
        return self._spelled([i for i in ids if i not in self._hidden_ids])

    def render(
        self, messages: Sequence[Message], *, continue_reply: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Render a conversation to prompt ids that end where the model's reply begins. Raises NoChatTemplate."""
        if not self.can_chat:
            raise NoChatTemplate(
                "This model has no chat template.",
                "It is a base model that continues text and does not answer questions.",
                "Choose the instruct or chat version of this model.",
            )
        template = self._tool_template if tools else self._template
        if not knows_tools(template.source):
            messages, tools = in_words(messages, tools), ()
        options = {"tools": as_functions(tools)} if tools else {}
        asked, reply = _before_reply(messages) if continue_reply else (messages, None)
        text = template.render(asked, **options)
        shown = [picture for message in asked for picture in message.pictures]
        if shown and self.vision is not None:
            text = self.vision.expand(text, shown)
        if reply is not None:
            text += template.reply_text(reply, self.marks, self.marks.opened_by(text))
        ids = self._encode_rendered(text)
        return ids if self.vision is None or not shown else self.vision.numbered(ids, shown)

    def render_unfinished(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, and those of the unfinished reply that follows it. Raises NoChatTemplate."""
        ids = self.render(messages, continue_reply=True, tools=tools)
        asked, _ = _before_reply(messages)
        begin = common_prefix(self.render(asked, tools=tools), ids)
        return ids[:begin], ids[begin:]

    def opens_thought(self, prompt: Sequence[int]) -> str:
        """Return the closing mark of a thought that the prompt opens, as DeepSeek-R1's template does; "" if none."""
        return self.marks.opened_by(self.decode(prompt[-MARK_IDS:]))

    def splice(self, prompt: list[int], drawn: Sequence[int], start: int) -> list[int]:
        """Replace the last reply in `prompt`, from `start`, by the ids the model drew (`drawn`) if their text is equal.

        Encoding a reply anew may segment it differently than it was drawn. Keeping the drawn ids preserves the KV
        cache.
        """
        text = self._spelled(drawn)
        if not text or "\ufffd" in text:
            return prompt
        for distance in range(SPLICE_REACH):
            for length in {len(drawn) - distance, len(drawn) + distance}:
                end = start + length
                if length > 0 and end <= len(prompt) and self._spelled(prompt[start:end]) == text:
                    return [*prompt[:start], *drawn, *prompt[end:]]
        return prompt

    def stream(self, shown: Iterable[str] = ()) -> TextStream:
        """Return a text stream for a reply; `shown`: control tokens to include in the text."""
        ids = {self.added_tokens.get(text) for text in shown}
        return TextStream(self._spelled, self._byte_ids, self._hidden_ids - ids)

    def _spelled(self, ids: Sequence[int]) -> str:
        """Decode with all special tokens spelled out, so that an end-of-turn token is not taken for text."""
        read = [id for id in ids if id >= 0]  # negative ids are pictures
        return str(self.backend.decode(read, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode_rendered(self, text: str) -> list[int]:
        """Encode a rendered conversation; no token spans a BREAK."""
        first, *others = text.split(BREAK)
        newline = self.encode("\n")
        ids = self.encode(first)
        for part in others:
            # Encoded after a line break, because tokenizers may add a space at the beginning of a text.
            after = self.encode(f"\n{part}")
            ids += after[len(newline) :] if after[: len(newline)] == newline else self.encode(part)
        return ids

    def _own_stop_ids(self) -> frozenset[int]:
        added = self.backend.get_added_vocab()
        names = [name for name in TURN_ENDS if not (name == "<|end|>" and "<|channel|>" in added)]
        ids = {self.backend.eos_token_id, *(added.get(name) for name in names), self._turn_end(added)}
        return frozenset(i for i in ids if isinstance(i, int))

    def _turn_end(self, added: dict[str, int]) -> int | None:
        """Return the token that the template writes after an answer, unless it also occurs inside answers."""
        if not self.can_chat:
            return None
        after = self._template.around.end.lstrip()
        for _, closing in self.marks.answers:
            after = after.removeprefix(closing).lstrip()
        name = max((name for name in added if name.strip() and after.startswith(name)), key=len, default="")
        inside = any(name in mark for mark in self.marks.texts)
        return None if not name or inside else added[name]

    def _find_hidden_ids(self) -> frozenset[int]:
        shown = [*(text for pair in self.marks.thoughts for text in pair), *self.marks.between]
        return frozenset(
            index
            for index, token in self.backend.added_tokens_decoder.items()
            if token.special and not any(token.content in text for text in shown)
        )


def _template(backend: Any, source: str) -> ChatTemplate:
    return ChatTemplate(source, backend.special_tokens_map, _control_tokens(backend, source))


def _id_of(backend: Any, token: str) -> int | None:
    found = backend.convert_tokens_to_ids(token)
    return found if isinstance(found, int) and backend.convert_ids_to_tokens(found) == token else None


def _control_tokens(backend: Any, template: str) -> list[str]:
    tokens = backend.added_tokens_decoder.values()
    return [token.content for token in tokens if token.content.strip() and (token.special or token.content in template)]


def _first_mark(text: str) -> str:
    """Return the closing mark in the text that a template writes between thought and answer."""
    found = TAG.match(text.strip())
    return found[0] if found else text.strip()


def _before_reply(messages: Sequence[Message]) -> tuple[list[Message], Message]:
    """Split off the reply to be continued, which may be several assistant messages; return the ones before, and it."""
    asked = list(messages)
    answers = [asked.pop()]
    while len(asked) > 1 and asked[-1].role == "assistant" and is_plain(asked[-1]):
        answers.insert(0, asked.pop())
    return asked, joined(answers)[0]
