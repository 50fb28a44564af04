"""Packs dialogues into rows of token ids: several per row, masked from each other; only answers are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from corpus import Corpus, Dialogue
from tokenizer import ASSISTANT, END, PAD, SPECIAL, SYSTEM, USER
from tokenizers import Tokenizer
from torch import Tensor

IGNORE = -100
# Answers are memorised early: for most, only the beginning is learned, where the intent is decided.
BRIEF_SHARE, BRIEF_TOKENS = 0.9, 6


@dataclass(frozen=True)
class Batch:
    """ids, labels and positions (B, T); mask (B, 1, T, T), True where a token may attend."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


class Packer:
    """Draws dialogues from the corpus and packs them into batches."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, rng: Random) -> None:
        self.corpus, self.tokenizer, self.rng = corpus, tokenizer, rng
        self.ids = {token: number for number, token in enumerate(SPECIAL)}

    def short(self, rows: int, width: int) -> Batch:
        """Return rows filled with dialogues of one or two turns."""
        return self._batch([self._fill(width) for _ in range(rows)], width)

    def long(self, tokens: int, widths: Sequence[int]) -> Batch:
        """Return rows of one dialogue each, all of one of the widths and about `tokens` long in total."""
        width = self.rng.choice(widths)
        rows = [[self._encode(self.corpus.dialogue(self.rng, width // 30))] for _ in range(tokens // width)]
        return self._batch(rows, width)

    def _fill(self, width: int) -> list[tuple[list[int], list[int]]]:
        parts, room = [], width
        while room > 24:
            dialogue = self.corpus.dialogue(self.rng, self.rng.choice([1, 1, 1, 1, 1, 1, 1, 2]))
            part = self._encode(dialogue)
            parts.append(part)
            room -= len(part[0])
        return parts

    def _encode(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        ids, labels = [], []
        if dialogue.system:
            ids = [self.ids[SYSTEM], *self.tokenizer.encode(dialogue.system).ids, self.ids[END]]
            labels = [IGNORE] * len(ids)
        learned = 0
        for turn in dialogue.turns:
            asked = [self.ids[USER], *self.tokenizer.encode(turn.question).ids, self.ids[END], self.ids[ASSISTANT]]
            answer = [*self.tokenizer.encode(turn.answer).ids, self.ids[END]]
            brief = BRIEF_TOKENS if self.rng.random() < BRIEF_SHARE else len(answer)
            labels += [IGNORE] * len(asked) + answer[:brief] + [IGNORE] * len(answer[brief:])
            ids += asked + answer
            learned = len(ids) - len(answer[brief:])
        return ids[:learned], labels[:learned]

    def _batch(self, rows: list[list[tuple[list[int], list[int]]]], width: int) -> Batch:
        ids = torch.full((len(rows), width), self.ids[PAD])
        labels = torch.full((len(rows), width), IGNORE)
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        segments = torch.full((len(rows), width), -1)
        for row, parts in enumerate(rows):
            at = 0
            for number, (part, wanted) in enumerate(parts):
                size = min(len(part), width - at)
                ids[row, at : at + size] = torch.tensor(part[:size])
                labels[row, at : at + size] = torch.tensor(wanted[:size])
                positions[row, at : at + size] = torch.arange(size)
                segments[row, at : at + size] = number
                at += size
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = (segments[:, :, None] == segments[:, None, :]) & causal
        return Batch(ids, labels, positions, mask[:, None])
