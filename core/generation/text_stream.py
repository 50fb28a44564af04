"""Incremental detokenisation that only ever emits whole characters.

Two kinds of tokenizers split characters. Byte-level ones decode an incomplete character to U+FFFD at the end. Those
with byte tokens (`<0xE2>`) decode a whole run of bytes to U+FFFD while one of its characters is incomplete, so the
bytes of such runs are joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# Each step decodes from this many ids back: enough for any character, and for words with a leading space.
CONTEXT_IDS = 6
BROKEN = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Converts ids that arrive one by one to text.

    >>> stream = tokenizer.stream()
    >>> text = "".join(stream.push(i) for i in ids) + stream.finish()   # == tokenizer.decode(ids)
    """

    def __init__(self, decode: Decode, byte_ids: Mapping[int, int], hidden: frozenset[int] = frozenset()) -> None:
        """`byte_ids`: byte token id -> its byte; `hidden`: ids without text."""
        self._decode = decode
        self._bytes = byte_ids
        self._hidden = hidden
        self._ids: list[int] = []
        self._given = 0  # number of ids whose text has been emitted

    def push(self, token: int) -> str:
        """Return the text that this id completes; empty inside of a character that spans several ids."""
        if token in self._hidden:
            return ""
        if token in self._bytes:
            self._ids.append(token)
            return self._take_bytes()
        broken = self._break_off()
        self._ids.append(token)
        text = self._pending()
        # A replacement character at the end may be an incomplete character.
        return broken if text.endswith(BROKEN) else broken + self._give(text)

    def finish(self) -> str:
        """Return the text held back, including incomplete characters."""
        return self._break_off() + self._give(self._pending())

    def _take_bytes(self) -> str:
        """Return the text of pending byte tokens once they form whole characters or are known to be invalid."""
        text = ""
        while waiting := self._waiting_bytes():
            try:
                waiting.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                text += self._drop(error.end)
            else:
                return text + self._give(self._pending())
        return text

    def _waiting_bytes(self) -> bytes:
        start = len(self._ids)
        while start > self._given and self._ids[start - 1] in self._bytes:
            start -= 1
        return bytes(self._bytes[token] for token in self._ids[start:])

    def _break_off(self) -> str:
        """Return one replacement character for pending bytes that can no longer be completed."""
        count = len(self._waiting_bytes())
        return self._drop(count) if count else ""

    def _drop(self, count: int) -> str:
        """Remove `count` invalid pending bytes from the ids, because they would corrupt later decoding."""
        start = len(self._ids) - len(self._waiting_bytes())
        text = self._give_until(start)
        del self._ids[self._given : self._given + count]
        if not self._ids:  # Decoders strip a leading space at the beginning of a text, which the rest is not.
            self._ids.append(next(token for token, value in self._bytes.items() if value < 0x80))
            self._given = 1
        return text + BROKEN

    def _give_until(self, end: int) -> str:
        rest = self._ids[end:]
        del self._ids[end:]
        text = self._give(self._pending())
        self._ids += rest
        return text

    def _pending(self) -> str:
        start = self._whole_start(self._given - CONTEXT_IDS)
        before = self._decode(self._ids[start : self._given])
        return self._decode(self._ids[start:])[len(before) :]

    def _whole_start(self, start: int) -> int:
        """Return the index at or before `start` where a character begins."""
        start = max(start, 0)
        while start > 0 and 0x80 <= self._bytes.get(self._ids[start], 0) < 0xC0:
            start -= 1
        return start

    def _give(self, text: str) -> str:
        if self._given > 4 * CONTEXT_IDS:
            del self._ids[: self._whole_start(self._given - CONTEXT_IDS)]
        self._given = len(self._ids)
        return text


def byte_tokens(ids: Sequence[int | None], decode: Decode) -> dict[int, int]:
    """Return the byte of each byte token; {} if the decoder does not map such tokens to their bytes.

    `ids`: the ids of `<0x00>` to `<0xFF>`, None for those missing from the vocabulary.
    """
    letter = ids[ord("A")]
    if letter is None or decode([letter]) != "A":
        return {}
    return {token: value for value, token in enumerate(ids) if token is not None}
