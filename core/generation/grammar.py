"""Grammar-constrained decoding with llguidance: token masks for JSON schemas and forced tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import BadRequest
from core.events import Tool
from core.generation.tokenizer import Tokenizer
from core.generation.tool_formats import GLM, QWEN_XML, ToolFormat, properties_of
from core.sentence import sentence

# Allow a single JSON layout: small models would otherwise emit white space without end.
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarMask:
    """The grammar state of one reply. If made with `waits`, it allows everything until `begin`."""

    def __init__(self, matcher: Any, vocabulary: int, *, waits: bool = False) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._active = not waits

    def begin(self) -> None:
        """Constrain the reply from the next token on."""
        self._active = True

    @property
    def ended(self) -> bool:
        """Return whether the grammar is complete and allows no further token."""
        return self._active and bool(self._matcher.is_stopped())

    def allow(self, scores: Tensor) -> Tensor:
        """Return `scores` (V,) with those of tokens that the grammar forbids at minus infinity."""
        if not self._active or self._matcher.is_stopped():
            return scores
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        # Inverted while packed, 32 tokens per word, which avoids a pass over the unpacked mask.
        size, known = scores.numel(), 32 * len(self._bits)
        bytes_of = np.unpackbits(np.invert(self._bits).view(np.uint8), count=min(size, known), bitorder="little")
        forbidden = torch.from_numpy(bytes_of.view(np.bool_))
        if size > known:  # the head's rows may be padded beyond the vocabulary
            forbidden = torch.nn.functional.pad(forbidden, (0, size - known), value=True)
        return scores.masked_fill(forbidden, -torch.inf)

    def accept(self, token: int) -> None:
        """Advance the grammar by the token that was drawn."""
        if self._active and not self._matcher.is_stopped():
            self._matcher.consume_token(token)


class Grammars:
    """Makes masks for one model's tokenizer, which is prepared on first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Any = None

    def for_schema(self, schema: str, *, waits: bool = False) -> GrammarMask:
        """Return a mask for JSON that conforms to `schema`. Raises BadRequest."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
        except ValueError as error:
            raise _unusable(str(error)) from error
        return self._mask(grammar, waits=waits)

    def for_calls(self, format: ToolFormat, tools: Sequence[Tool], *, waits: bool = False) -> GrammarMask:
        """Return a mask for a call of one of these tools in this format. Raises BadRequest."""
        from llguidance import LLMatcher

        calls = [_call(format, tool, self._tokenizer.added_tokens) for tool in tools]
        rules = [f"call_{number}: {call}" for number, call in enumerate(calls)]
        start = " | ".join(f"call_{number}" for number in range(len(calls)))
        text = "\n".join((f"start: {start}", *rules, r"TEXT: /([^<]|<[^\/])*/"))
        return self._mask(LLMatcher.grammar_from_lark(text), waits=waits)

    def _mask(self, grammar: str, *, waits: bool) -> GrammarMask:
        from llguidance import LLMatcher

        vocabulary = self._words()
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise _unusable(matcher.get_error())
        return GrammarMask(matcher, vocabulary.vocab_size, waits=waits)

    def _words(self) -> Any:
        from llguidance import LLTokenizer

        if self._vocabulary is None:
            text, stop_ids = self._tokenizer.serialized, sorted(self._tokenizer.stop_ids)
            if not text or not stop_ids:
                raise BadRequest("This model's tokenizer cannot be held to a grammar.", "", "Ask without a schema.")
            try:
                self._vocabulary = LLTokenizer(text, eos_token=stop_ids)
            except ValueError as error:
                raise BadRequest(
                    "This model's tokenizer cannot be held to a grammar.", "", "Ask without a schema."
                ) from error
        return self._vocabulary


def _unusable(reason: str) -> BadRequest:
    line = reason.strip().splitlines()[0] if reason.strip() else sentence("It is not valid.")
    return BadRequest("The JSON schema cannot be enforced.", line, "Simplify the schema.")


def _call(format: ToolFormat, tool: Tool, added: Mapping[str, int]) -> str:
    """Return the Lark rule for one call."""
    begin = _literal(format.begin % tool.name, added)
    arguments = _tagged(format, tool, added) if format.name in (QWEN_XML.name, GLM.name) else _json(tool.parameters)
    return f"{begin} {arguments} {_literal(format.end, added)}"


def _json(schema: Mapping[str, Any]) -> str:
    wanted = dict(schema) or {"type": "object"}
    wanted.setdefault("type", "object")
    if "properties" in wanted:
        wanted.setdefault("additionalProperties", False)
    return "%json " + json.dumps(wanted | {"x-guidance": COMPACT})


def _tagged(format: ToolFormat, tool: Tool, added: Mapping[str, int]) -> str:
    """Return the Lark rule for tagged arguments, each at most once and in the schema's order."""
    required = tool.parameters.get("required")
    parts = []
    for name, schema in properties_of(tool).items():
        pair = _pair(format, name, schema, added)
        parts.append(pair if isinstance(required, list) and name in required else f"({pair})?")
    return " ".join(parts)


def _pair(format: ToolFormat, name: str, schema: Any, added: Mapping[str, int]) -> str:
    is_text = isinstance(schema, dict) and schema.get("type") == "string" and "enum" not in schema
    value = "TEXT" if is_text else "%json " + json.dumps(schema)
    if format.name == GLM.name:
        begin, end = f"<arg_key>{name}</arg_key>\n<arg_value>", "</arg_value>\n"
    else:
        begin, end = f"<parameter={name}>\n", "\n</parameter>\n"
    return f"{_literal(begin, added)} {value} {_literal(end, added)}"


def _literal(text: str, added: Mapping[str, int]) -> str:
    """Return `text` as a Lark expression: added tokens by id, the rest as quoted strings."""
    if not text:
        return ""
    tokens = sorted((token for token in added if token and token in text), key=len, reverse=True)
    if not tokens:
        return json.dumps(text)
    parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    return " ".join(f"<[{added[part]}]>" if part in added else json.dumps(part) for part in parts if part)
