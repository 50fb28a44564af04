"""English sentences that remember how they were made, so that a window can say them in another language."""

from __future__ import annotations

from typing import TypeGuard


class Sentence(str):
    """The text of `template` with `args` in its gaps, {} each; an argument may be a sentence itself."""

    template: str
    args: tuple[object, ...]

    def __new__(cls, template: str, *args: object) -> Sentence:
        made = super().__new__(cls, template.format(*args))
        made.template, made.args = template, args
        return made

    def __getnewargs__(self) -> tuple[object, ...]:  # type: ignore[override]
        return (self.template, *self.args)


def sentence(template: str, *args: object) -> str:
    """The text for people: `template` must stand here as a literal, so that it can be found and translated."""
    return Sentence(template, *(arg if isinstance(arg, str | int | float) else str(arg) for arg in args))


def joined(separator: str, parts: list[str]) -> str:
    """`separator.join(parts)`, still made of its parts."""
    return Sentence(separator.join(["{}"] * len(parts)), *parts)


def pack(text: str) -> object:
    """The text as JSON keeps it: a plain string, or a list of the template and its arguments."""
    if not isinstance(text, Sentence):
        return text
    return [text.template, *(pack(arg) if isinstance(arg, str) else arg for arg in text.args)]


def unpack(kept: object) -> str:
    """The text that `pack` was given; anything else as a string."""
    if not _is_packed(kept):
        return str(kept)
    template, *args = kept
    try:
        return Sentence(str(template), *(unpack(arg) if isinstance(arg, str | list) else arg for arg in args))
    except IndexError:
        return str(template)


def _is_packed(kept: object) -> TypeGuard[list[object]]:
    return isinstance(kept, list) and bool(kept)
