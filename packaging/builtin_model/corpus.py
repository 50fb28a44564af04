"""The guide's training text: dialogues drawn from intents and question templates, all written for this project.

Wordings of the evaluation and development sets are never drawn; `Corpus` skips them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from grammar import Slots, expand, normalise
from noise import Habits, spell, wear

HERE = Path(__file__).parent
OUT_OF_SCOPE_SHARE = 0.22
PLAIN_SHARE = 0.4


@dataclass(frozen=True)
class Intent:
    """A user's intent: the guide's answers, and how it may be asked (see intents.toml, plain.toml)."""

    name: str
    answers: tuple[str, ...]
    tasks: tuple[str, ...]
    terms: tuple[str, ...]
    questions: tuple[str, ...]
    plain: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Turns, after a system prompt or none ("")."""

    system: str
    turns: tuple[Turn, ...]


def read_toml(name: str) -> dict[str, Any]:
    """Read a data file beside this module."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def lines(text: str) -> tuple[str, ...]:
    """Split a block of templates into lines."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


def read_intents() -> list[Intent]:
    """Read all intents; the last is `out_of_scope`."""
    rows = read_toml("intents.toml")["intent"] + read_toml("out_of_scope.toml")["intent"]
    plain = read_toml("plain.toml")
    blocks = ("tasks", "terms", "questions")
    parts = [[*(lines(row.get(block, "")) for block in blocks), lines(plain[row["name"]])] for row in rows]
    return [Intent(row["name"], tuple(row["answers"]), *part) for row, part in zip(rows, parts, strict=True)]


def read_slots() -> dict[str, tuple[str, ...]]:
    """Read the word lists that templates name in braces."""
    slots = {name: tuple(words) for name, words in read_toml("frames.toml")["slots"].items()}
    for name, words in read_toml("topics.toml")["slots"].items():
        slots[name] = tuple(word.strip() for word in re.split(r"[,\n]", words) if word.strip())
    return slots


def read_questions(name: str) -> dict[str, list[str]]:
    """Read held-out questions by intent, from `evaluation.json` or `development.json`."""
    questions: dict[str, list[str]] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return questions


def held_out() -> frozenset[str]:
    """Return the normalised wordings that must not occur in the training text."""
    sets = [read_questions("evaluation.json"), read_questions("development.json")]
    return frozenset(normalise(question) for each in sets for questions in each.values() for question in questions)


def invent(syllables: Sequence[str], rng: Random) -> str:
    """Make up a word, so that unknown words come to mean an unknown subject."""
    word = "".join(rng.choice(syllables) for _ in range(rng.choice([2, 2, 3])))
    return word + rng.choice(["", "", "s", "n", "r", "l"])


def read_habits(table: Mapping[str, str]) -> Habits:
    """Read the word lists of frames.toml that noise uses."""
    capitals = {word.lower(): word for word in table["capitals"].split()}
    return Habits(frozenset(table["fillers"].split()), tuple(table["added"].split()), capitals)


def read_synonyms(block: str) -> dict[str, tuple[str, ...]]:
    """Parse synonyms: the first word of each line, and what may replace it."""
    groups = [[word.strip() for word in line.split(",")] for line in lines(block)]
    return {first: tuple(rest) for first, *rest in groups}


def reword(text: str, synonyms: Mapping[str, Sequence[str]], rng: Random) -> str:
    """Replace some words of half of the texts by synonyms."""
    if rng.random() < 0.5:
        return text
    words = text.split()
    return " ".join(rng.choice(synonyms[word]) if word in synonyms and rng.random() < 0.4 else word for word in words)


class Corpus:
    """Draws random dialogues; the same `rng` state gives the same text."""

    def __init__(self) -> None:
        self.intents = read_intents()
        self.held_out = held_out()
        frames = read_toml("frames.toml")
        self.frames = {name: lines(block) for name, block in frames.items() if isinstance(block, str)}
        self.habits = read_habits(frames["habits"])
        self.slots: Slots = read_slots()
        self.synonyms = read_synonyms(frames["synonyms"]["words"])

    def dialogue(self, rng: Random, turns: int) -> Dialogue:
        """Draw a dialogue of `turns` turns, sometimes with a system prompt."""
        system = self._frame("system_prompts", rng) if rng.random() < 0.2 else ""
        return Dialogue(system, tuple(self.turn(rng) for _ in range(turns)))

    def turn(self, rng: Random) -> Turn:
        """Draw a random question and its answer."""
        known, unknown = self.intents[:-1], self.intents[-1]
        intent = unknown if rng.random() < OUT_OF_SCOPE_SHARE else rng.choice(known)
        return Turn(self.question(intent, rng), rng.choice(intent.answers))

    def question(self, intent: Intent, rng: Random) -> str:
        """Draw a random question for the intent that is not a held-out wording."""
        while True:
            asked = self._plain(intent, rng) if rng.random() < PLAIN_SHARE else self._elaborate(intent, rng)
            text = spell(asked, self.habits.capitals, rng)
            if normalise(text) not in self.held_out:
                return text

    def _plain(self, intent: Intent, rng: Random) -> str:
        text = self._expand(rng.choice(intent.plain), rng)
        return wear(text, self.habits, rng) if rng.random() < 0.5 else text

    def _elaborate(self, intent: Intent, rng: Random) -> str:
        text = reword(self._template(intent, rng), self.synonyms, rng)
        return self._surround(wear(text, self.habits, rng), rng)

    def _template(self, intent: Intent, rng: Random) -> str:
        at = rng.randrange(len(intent.tasks) + len(intent.terms) + len(intent.questions))
        if at < len(intent.tasks):
            return self._expand(rng.choice(self.frames["how"]).replace("{task}", intent.tasks[at]), rng)
        at -= len(intent.tasks)
        if at < len(intent.terms):
            return self._expand(rng.choice(self.frames["what"]).replace("{term}", intent.terms[at]), rng)
        return self._expand(intent.questions[at - len(intent.terms)], rng)

    def _surround(self, text: str, rng: Random) -> str:
        if rng.random() < 0.15:
            text = f"{self._frame('openers', rng)}{rng.choice(['', ',', ',', '!', '.'])} {text}"
        if rng.random() < 0.12:
            text = f"{text}{rng.choice(['', ',', '?'])} {self._frame('closers', rng)}"
        if rng.random() < 0.07:
            text = f"{self._frame('preambles', rng)} {text}"
        return text

    def _frame(self, name: str, rng: Random) -> str:
        return self._expand(rng.choice(self.frames[name]), rng)

    def _expand(self, template: str, rng: Random) -> str:
        while "{invented}" in template:
            template = template.replace("{invented}", invent(self.slots["syllable"], rng), 1)
        return expand(template, self.slots, rng)
