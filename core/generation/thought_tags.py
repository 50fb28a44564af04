"""The marks of thoughts, and of answers after them, as tables.

A model's own marks are found in its chat template and its added tokens; the tables cover the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Pair = tuple[str, str]

# Opening and closing marks of thoughts.
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
# Opening and closing marks of an answer that follows a thought.
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
# gpt-oss writes to channels: its analysis is the thought. The texts between two channels are dropped.
CHANNEL = "<|channel|>"
CHANNELS: Pair = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
BETWEEN_CHANNELS = (
    "<|end|>",
    "<|start|>assistant",
    "<|channel|>commentary<|message|>",
    "<|channel|>final<|message|>",
)

TAG = re.compile(r"<[^<>\s{}%'\"]{1,40}>|\[/?[A-Z_]{2,}\]|◁[^◁▷\s]{1,40}▷")
"""A mark as it appears in templates and vocabularies."""
ABOUT_THOUGHT = re.compile(r"think|thought|reason|reflect|(?<![a-z])cot(?![a-z])|inner|ponder|rationale", re.IGNORECASE)
ABOUT_ANSWER = re.compile(
    r"^(?!.*(?:tool|func|call|search|query|doc)).*(?:answer|response|solution|output|final)", re.I
)
# Each replacement turns an opening mark into its closing mark.
CLOSINGS = (
    ("<|", "<|/"), ("<", "</"), ("[", "[/"), ("◁", "◁/"), ("start", "end"), ("START", "END"), ("begin", "end"),
    ("BEGIN", "END"), ("open", "close"), ("prefix", "suffix"),
)  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """The marks that one model's replies may contain: of thoughts, of answers after a thought, and text to drop.

    `own_answers`: pairs of `answers` that may also begin a reply without a thought.
    """

    thoughts: tuple[Pair, ...] = (*THOUGHTS, CHANNELS)
    answers: tuple[Pair, ...] = ANSWERS
    between: tuple[str, ...] = BETWEEN_CHANNELS
    own_answers: frozenset[Pair] = field(default_factory=frozenset)

    @property
    def texts(self) -> frozenset[str]:
        """Return all marks."""
        return frozenset(text for pair in (*self.thoughts, *self.answers) for text in pair) | frozenset(self.between)

    def opened_by(self, prompt: str) -> str:
        """Return the closing mark of the thought that the end of a prompt opens; "" if there is none."""
        ending = prompt.rstrip()
        opened = [pair for pair in self.thoughts if ending.endswith(pair[0])]
        return max(opened, key=lambda pair: len(pair[0]))[1] if opened else ""


def marks_of(template: str, added: Iterable[str], rendered: Pair | None = None) -> Marks:
    """Return the marks of a model with this chat template and these added tokens.

    `rendered`: what its template writes before and after a thought.
    """
    names = {*added, *TAG.findall(template)}
    own = tuple(pairs(names, ABOUT_THOUGHT))
    answers = tuple(pairs(names, ABOUT_ANSWER))
    channels = CHANNEL in names
    if rendered and not (channels and rendered[0].startswith(CHANNEL)):
        own = (rendered, *own)
    # A model's own marks take precedence where several pairs have the same opening mark.
    thoughts = dict((*THOUGHTS, *reversed(own)))
    return Marks(
        (*thoughts.items(), CHANNELS) if channels else tuple(thoughts.items()),
        tuple(dict.fromkeys((*answers, *ANSWERS))),
        BETWEEN_CHANNELS if channels else (),
        frozenset(pair for pair in (*answers, *ANSWERS) if names.issuperset(pair)),
    )


def pairs(names: set[str], subject: re.Pattern[str]) -> Iterator[Pair]:
    """Yield the pairs of opening and closing marks among `names` that match `subject`."""
    for name in sorted(names):
        if TAG.fullmatch(name) and subject.search(name):
            for old, new in CLOSINGS:
                if old in name and (closing := name.replace(old, new, 1)) in names:
                    yield name, closing
                    break
