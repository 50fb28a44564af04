"""How models mark their thoughts, and their answers after them, as data.

A model's own marks are found in its chat template and among its added tokens; the tables are for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Pair = tuple[str, str]

# What opens and what closes a thought.
THOUGHTS: tuple[Pair, ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reason>", "</reason>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|begin_of_thinking|>", "<|end_of_thinking|>"),
    ("<|thought_start|>", "<|thought_end|>"),
    ("<|think_start|>", "<|think_end|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
# What stands around an answer that follows a thought.
ANSWERS: tuple[Pair, ...] = (
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("<output>", "</output>"),
    ("<Output>", "</Output>"),
    ("<solution>", "</solution>"),
    ("<final>", "</final>"),
    ("<final_answer>", "</final_answer>"),
    ("<seed:answer>", "</seed:answer>"),
    ("[ANSWER]", "[/ANSWER]"),
    ("<|response|>", "<|/response|>"),
    ("<|answer|>", "<|/answer|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|begin_of_answer|>", "<|end_of_answer|>"),
    ("<|begin_of_response|>", "<|end_of_response|>"),
)
# gpt-oss writes to channels: its analysis is the thought. The rest stands between two channels and is not read.
CHANNEL = "<|channel|>"
CHANNELS: Pair = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
BETWEEN_CHANNELS = (
    "<|end|>",
    "<|start|>assistant",
    "<|channel|>commentary<|message|>",
    "<|channel|>final<|message|>",
)

TAG = re.compile(r"<[^<>\s{}%'\"]{1,40}>|\[/?[A-Z_]{2,}\]|◁[^◁▷\s]{1,40}▷")
"""A mark as templates and vocabularies have them."""
ABOUT_THOUGHT = re.compile(r"think|thought|reason|reflect|(?<![a-z])cot(?![a-z])|inner|ponder|rationale", re.IGNORECASE)
ABOUT_ANSWER = re.compile(
    r"^(?!.*(?:tool|func|call|search|query|doc)).*(?:answer|response|solution|output|final)", re.I
)
# An opening mark becomes its closing one by one of these replacements.
CLOSINGS = (
    ("<|", "<|/"), ("<", "</"), ("[", "[/"), ("◁", "◁/"), ("start", "end"), ("START", "END"), ("begin", "end"),
    ("BEGIN", "END"), ("open", "close"), ("prefix", "suffix"),
)  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """What one model's replies may contain: around thoughts, around the answer after one, and what is not read.

    `own_answers`: the pairs of `answers` that may also begin a reply without a thought.
    """

    thoughts: tuple[Pair, ...] = (*THOUGHTS, CHANNELS)
    answers: tuple[Pair, ...] = ANSWERS
    between: tuple[str, ...] = BETWEEN_CHANNELS
    own_answers: frozenset[Pair] = field(default_factory=frozenset)

    @property
    def texts(self) -> frozenset[str]:
        """Every mark."""
        return frozenset(text for pair in (*self.thoughts, *self.answers) for text in pair) | frozenset(self.between)

    def opened_by(self, prompt: str) -> str:
        """What closes the thought that the end of a prompt has opened, "" if there is none."""
        ending = prompt.rstrip()
        opened = [pair for pair in self.thoughts if ending.endswith(pair[0])]
        return max(opened, key=lambda pair: len(pair[0]))[1] if opened else ""


def marks_of(template: str, added: Iterable[str], rendered: Pair | None = None) -> Marks:
    """The marks of a model with this chat template and these added tokens.

    `rendered`: what its template writes around a thought.
    """
    names = {*added, *TAG.findall(template)}
    own = tuple(pairs(names, ABOUT_THOUGHT))
    answers = tuple(pairs(names, ABOUT_ANSWER))
    channels = CHANNEL in names
    if rendered and not (channels and rendered[0].startswith(CHANNEL)):
        own = (rendered, *own)
    # A model's own marks come first: they decide what closes an opening that several know.
    thoughts = dict((*THOUGHTS, *reversed(own)))
    return Marks(
        (*thoughts.items(), CHANNELS) if channels else tuple(thoughts.items()),
        tuple(dict.fromkeys((*answers, *ANSWERS))),
        BETWEEN_CHANNELS if channels else (),
        frozenset(pair for pair in (*answers, *ANSWERS) if names.issuperset(pair)),
    )


def pairs(names: set[str], subject: re.Pattern[str]) -> Iterator[Pair]:
    """The opening and closing marks among these names that speak of the subject."""
    for name in sorted(names):
        if TAG.fullmatch(name) and subject.search(name):
            for old, new in CLOSINGS:
                if old in name and (closing := name.replace(old, new, 1)) in names:
                    yield name, closing
                    break
