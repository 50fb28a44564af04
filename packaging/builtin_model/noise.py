"""Imitates how people type: words omitted or added, typos, missing capitals and punctuation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "ko", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
MARKS = ("", "", "", ".", "??", " ?", "!", "...")


@dataclass(frozen=True)
class Habits:
    """Words easily omitted, words easily added, and capitalised forms by lower-case word."""

    fillers: frozenset[str]
    added: tuple[str, ...]
    capitals: Mapping[str, str]


def slip(word: str, rng: Random) -> str:
    """Drop, double, swap or replace one letter by its neighbour on the keyboard; short words stay."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    if kind == 2:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + rng.choice(NEIGHBOURS.get(word[at].lower(), word[at])) + word[at + 1 :]


def drop(words: Sequence[str], fillers: frozenset[str], rate: float, rng: Random) -> list[str]:
    """Remove some of the filler words; at least one word stays."""
    kept = [word for word in words if word.lower() not in fillers or rng.random() > rate]
    return kept or list(words)


def wear(text: str, habits: Habits, rng: Random) -> str:
    """Rewrite the question as someone in a hurry might type it."""
    words = text.split()
    if rng.random() < 0.25:
        words = drop(words, habits.fillers, rng.choice([0.3, 0.6, 1.0]), rng)
    if rng.random() < 0.12:
        words.insert(rng.randrange(len(words) + 1), rng.choice(habits.added))
    if rng.random() < 0.15:
        at = rng.randrange(len(words))
        words[at] = slip(words[at], rng)
    if rng.random() < 0.04 and len(words) > 3:
        at = rng.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
    text = " ".join(words)
    return text.replace("'", "") if rng.random() < 0.3 else text


def spell(text: str, capitals: Mapping[str, str], rng: Random) -> str:
    """Vary the question's capitals and closing punctuation."""
    style = rng.random()
    if style < 0.5:
        text = re.sub(r"[a-z']+", lambda match: capitals.get(match[0], match[0]), text)
    if style < 0.65:
        text = text[0].upper() + text[1:]
    elif style < 0.95:
        text = text.lower()
    elif style < 0.97:
        text = text.upper()
    end = rng.random()
    if end < 0.55:
        return text + "?"
    return text + rng.choice(MARKS) if end < 0.75 else text
