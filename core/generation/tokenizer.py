"""Text at the edge: messages -> ids through the model's chat template, ids -> whole characters as a stream.

The only module that knows both text and ids. Control tokens inside people's text are encoded as plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import HeteGenError, ModelUnreadable, NoChatTemplate
from core.events import Message, Tool
from core.generation.reasoning import MARKERS
from core.generation.tool_formats import as_functions, in_words, knows_tools

# A stream decodes again from this many ids back: enough for any character and for words joined to their space.
CONTEXT_IDS = 6
# A re-rendered reply may differ in its ids from what the model drew by about this many, while its text is the same.
SPLICE_REACH = 64


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, backend: Any, eos_ids: Iterable[int] = ()) -> None:
        self._backend = backend
        self.stop_ids = frozenset(eos_ids) | _own_stop_ids(backend)
        self._hidden_ids = _hidden_ids(backend)

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether both give the same ids to the same text."""
        mine, others = self._backend.get_vocab(), other._backend.get_vocab()
        return bool(mine == others)

    @classmethod
    def load(cls, folder: Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
        """Read the tokenizer files of a model folder. Raises ModelUnreadable."""
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # tokenizers' Rust errors are plain Exceptions: nothing narrower can be named.
        except Exception as error:
            raise _no_tokenizer(folder, error) from error
        return cls(backend, eos_ids)

    @property
    def can_chat(self) -> bool:
        return bool(getattr(self._backend, "chat_template", None))

    @property
    def template(self) -> str:
        """The chat template's source; "" where there is none or several."""
        found = getattr(self._backend, "chat_template", None)
        return found if isinstance(found, str) else ""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Tokens added to the vocabulary, control tokens among them, and their ids."""
        return dict(self._backend.get_added_vocab())

    @property
    def serialized(self) -> str:
        """The tokenizer as the JSON of the `tokenizers` library; "" where it is none of that library's."""
        inner = getattr(self._backend, "backend_tokenizer", None)
        return "" if inner is None else str(inner.to_str())

    def encode_prompt(self, text: str) -> list[int]:
        """A text to be continued as it stands: no template, but the token that begins texts."""
        return [int(i) for i in self._backend.encode(text, add_special_tokens=True)]

    def encode(self, text: str) -> list[int]:
        """Plain text, no template and no special tokens."""
        return list(self._backend.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """All of `ids` at once, without special tokens other than the reasoning markers."""
        return str(self._backend.decode([i for i in ids if i not in self._hidden_ids], skip_special_tokens=False))

    def render(
        self, messages: Sequence[Message], *, continue_reply: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """The prompt's ids, ending where the model is to write. Raises NoChatTemplate."""
        if not self.can_chat:
            raise NoChatTemplate(
                "This model has no chat template.",
                "It is a base model that continues text and does not answer questions.",
                "Choose the instruct or chat version of this model.",
            )
        if not knows_tools(self.template):
            messages, tools = in_words(messages, tools), ()
        turns = [_turn(message) for message in messages]
        options: dict[str, Any] = {"continue_final_message" if continue_reply else "add_generation_prompt": True}
        if tools:
            options["tools"] = as_functions(tools)
        try:
            ids = self._backend.apply_chat_template(turns, return_dict=False, sanitize_control_tokens=True, **options)
        # Templates are programs of the model's author: they raise jinja2's errors and any of Python's.
        except Exception as error:
            if turns[0]["role"] == "system" and len(turns) > 1:
                return self.render(_system_into_first(messages), continue_reply=continue_reply, tools=tools)
            raise _template_failed(error) from error
        return [int(i) for i in ids]

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt itself ends inside an open reasoning marker, as DeepSeek-R1's template does."""
        tail = self.decode(prompt[-16:]).rstrip()
        return any(tail.endswith(opening) for opening, _ in MARKERS)

    def splice(self, prompt: list[int], drawn: Sequence[int], start: int) -> list[int]:
        """`prompt` with the ids the model drew for its last reply (`drawn`, from `start`) where the text is the same.

        Encoding a reply anew may cut its words differently from how they were drawn; the text decides.
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

    def _spelled(self, ids: Sequence[int]) -> str:
        """The text with every special token written out, so that the end of a turn is not taken for part of it."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def stream(self, shown: Iterable[str] = ()) -> TextStream:
        """A stream of the reply's text; `shown`: control tokens that are not to be hidden from it."""
        ids = {self.added_tokens.get(text) for text in shown}
        return TextStream(self, self._hidden_ids - ids)

    def spell(self, ids: Sequence[int], hidden: frozenset[int]) -> str:
        """All of `ids` at once, without the `hidden` ones."""
        return str(self._backend.decode([i for i in ids if i not in hidden], skip_special_tokens=False))


class TextStream:
    """Turns ids into text as they come, only ever giving whole characters.

    >>> stream = tokenizer.stream()
    >>> text = "".join(stream.push(i) for i in ids) + stream.finish()   # == tokenizer.decode(ids)
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._ids: list[int] = []
        self._given = 0  # ids whose text has been given out

    def push(self, token: int) -> str:
        """The text that became certain with this id; empty inside a character that spans several ids."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        text = self._pending()
        # A replacement character at the end may be the first bytes of one still to come.
        return "" if text.endswith("\ufffd") else self._give(text)

    def finish(self) -> str:
        """What was held back, broken characters included."""
        return self._give(self._pending())

    def _pending(self) -> str:
        start = max(self._given - CONTEXT_IDS, 0)
        before = self._tokenizer.spell(self._ids[start : self._given], self._hidden)
        return self._tokenizer.spell(self._ids[start:], self._hidden)[len(before) :]

    def _give(self, text: str) -> str:
        if self._given > 4 * CONTEXT_IDS:
            del self._ids[: self._given - CONTEXT_IDS]
        self._given = len(self._ids)
        return text


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _parsed(call.arguments)}}
            for call in message.tool_calls
        ]
    return turn | {"tool_call_id": message.tool_call_id} if message.tool_call_id else turn


class _Arguments(dict[str, Any]):
    """Arguments of a tool call for any template: most write a mapping as JSON themselves, some append a text."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __radd__(self, text: str) -> str:
        return f"{text}{self}"


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return _Arguments(value) if isinstance(value, dict) else arguments


def _system_into_first(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system role (early Gemma): its text opens the first question."""
    system, first, *rest = messages
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]


def _own_stop_ids(backend: Any) -> frozenset[int]:
    ids = {backend.eos_token_id}
    # End-of-turn tokens by the names the families gave them; many tokenizers still say only <|endoftext|> is the end.
    for name in ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>"):
        found = backend.get_added_vocab().get(name)
        if found is not None and not (name == "<|end|>" and "<|channel|>" in backend.get_added_vocab()):
            ids.add(found)
    return frozenset(i for i in ids if isinstance(i, int))


def _hidden_ids(backend: Any) -> frozenset[int]:
    shown = "".join(part for marker in MARKERS for part in marker)
    return frozenset(
        index for index, token in backend.added_tokens_decoder.items() if token.special and token.content not in shown
    )


def _template_failed(error: Exception) -> HeteGenError:
    return NoChatTemplate(
        "This model's chat template refuses the conversation.",
        f"It says: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}.",
        "Start a new conversation, or choose another model.",
    )


def _no_tokenizer(folder: Path, error: Exception) -> ModelUnreadable:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if not any((folder / name).exists() for name in names):
        return ModelUnreadable(
            "The model has no tokenizer.",
            f"{folder.name} holds none of the files it could be in.",
            "Download it again.",
        )
    if isinstance(error, ImportError | json.JSONDecodeError):
        reason = str(error).splitlines()[0]
    else:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'unreadable'}"
    return ModelUnreadable("The model's tokenizer cannot be read.", f"{reason}.", "Download the model again.")
