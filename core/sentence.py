"""English sentences that remember their template and arguments, so that a window can translate them."""

from __future__ import annotations

from typing import TypeGuard


class Sentence(str):
    """The text of `template` with `args` in its {} placeholders; an argument may be a Sentence itself."""

    template: str
    args: tuple[object, ...]

    def __new__(cls, template: str, *args: object) -> Sentence:
        made = super().__new__(cls, template.format(*args))
        made.template, made.args = template, args
        return made

    def __getnewargs__(self) -> tuple[object, ...]:  # type: ignore[override]
        return (self.template, *self.args)


def sentence(template: str, *args: object) -> str:
    """Return a text for users; `template` must be a literal at the call, so that it can be extracted for
    translation."""
    return Sentence(template, *(arg if isinstance(arg, str | int | float) else str(arg) for arg in args))


def joined(separator: str, parts: list[str]) -> str:
    """Return `separator.join(parts)` as a Sentence that keeps its parts."""
    return Sentence(separator.join(["{}"] * len(parts)), *parts)


def pack(text: str) -> object:
    """Return the text as JSON data: a plain string, or a list of the template and its arguments."""
    if not isinstance(text, Sentence):
        return text
    return [text.template, *(pack(arg) if isinstance(arg, str) else arg for arg in text.args)]


def unpack(kept: object) -> str:
    """Return the text from the result of `pack`; anything else is converted to a string."""
    if not _is_packed(kept):
        return str(kept)
    template, *args = kept
    try:
        return Sentence(str(template), *(unpack(arg) if isinstance(arg, str | list) else arg for arg in args))
    except IndexError:
        return str(template)


def _is_packed(kept: object) -> TypeGuard[list[object]]:
    return isinstance(kept, list) and bool(kept)
