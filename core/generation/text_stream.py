"""Ids to text as they come, only ever in whole characters.

Two kinds of tokenizers cut characters: byte-level ones, whose decoder shows a broken character as U+FFFD at the end,
and those with byte tokens (`<0xE2>`), whose decoder turns a whole run of bytes into U+FFFD while one character of it is
unfinished. The bytes of the second kind are therefore joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# A stream decodes again from this many ids back: enough for any character and for words joined to their space.
CONTEXT_IDS = 6
BROKEN = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Gives the text of ids that arrive one by one.

    >>> stream = tokenizer.stream()
    >>> text = "".join(stream.push(i) for i in ids) + stream.finish()   # == tokenizer.decode(ids)
    """

    def __init__(self, decode: Decode, byte_ids: Mapping[int, int], hidden: frozenset[int] = frozenset()) -> None:
        """`byte_ids`: the byte that each byte token stands for; `hidden`: ids without text."""
        self._decode = decode
        self._bytes = byte_ids
        self._hidden = hidden
        self._ids: list[int] = []
        self._given = 0  # ids whose text has been given out

    def push(self, token: int) -> str:
        """The text that became certain with this id; empty inside a character that spans several ids."""
        if token in self._hidden:
            return ""
        if token in self._bytes:
            self._ids.append(token)
            return self._take_bytes()
        broken = self._break_off()
        self._ids.append(token)
        text = self._pending()
        # A replacement character at the end may be the first bytes of one still to come.
        return broken if text.endswith(BROKEN) else broken + self._give(text)

    def finish(self) -> str:
        """What was held back, broken characters included."""
        return self._break_off() + self._give(self._pending())

    def _take_bytes(self) -> str:
        """The text of the waiting byte tokens once they are whole characters, or once they can be none."""
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
        """Waiting bytes that nothing will complete, as one replacement character."""
        count = len(self._waiting_bytes())
        return self._drop(count) if count else ""

    def _drop(self, count: int) -> str:
        """Take `count` waiting bytes, which are no character, out of the ids: they would spoil what is decoded next."""
        start = len(self._ids) - len(self._waiting_bytes())
        text = self._give_until(start)
        del self._ids[self._given : self._given + count]
        if not self._ids:  # What follows is not the beginning of the text, where decoders take a space away.
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
        """The place at or before `start` where a character begins."""
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
    """The byte of each byte token, {} where such a token is not decoded to its byte.

    `ids`: those of `<0x00>` to `<0xFF>`, None for the ones that are not in the vocabulary.
    """
    letter = ids[ord("A")]
    if letter is None or decode([letter]) != "A":
        return {}
    return {token: value for value, token in enumerate(ids) if token is not None}
