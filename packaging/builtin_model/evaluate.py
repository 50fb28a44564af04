"""Asks a trained guide held-out questions, greedily, and counts the answers that are what was intended.

`python packaging/builtin_model/evaluate.py [folder] [questions.json]` prints the misses and the share.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import HERE, read_intents, read_questions
from tokenizer import ASSISTANT, END, PAD, USER
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

MODEL = HERE.parent.parent / "assets" / "builtin-model"
NEW_TOKENS = 90
BATCH = 64


@dataclass(frozen=True)
class Miss:
    """A question that was answered with something else than its intent's answers."""

    intent: str
    question: str
    answer: str


@torch.inference_mode()
def reply(model: PreTrainedModel, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """The greedy answers to single questions, padded on the left to one batch."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    rows = [tokenizer.encode(f"{USER}{question.strip()}{END}{ASSISTANT}").ids for question in questions]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=pad)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    return [tokenizer.decode(row[width:], skip_special_tokens=True).strip() for row in out.tolist()]


def score(model: PreTrainedModel, tokenizer: Tokenizer, asked: dict[str, list[str]]) -> tuple[float, list[Miss]]:
    """Share of questions answered word for word with an answer of their intent (0-1), and the misses."""
    answers = {intent.name: intent.answers for intent in read_intents()}
    pairs = [(name, question) for name, questions in asked.items() for question in questions]
    misses = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        for (name, question), got in zip(batch, reply(model, tokenizer, [text for _, text in batch]), strict=True):
            if got not in answers[name]:
                misses.append(Miss(name, question, got))
    return 1 - len(misses) / len(pairs), misses


def main(folder: Path, questions: str) -> None:
    """Prints every miss and the share answered as intended."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    share, misses = score(model, tokenizer, read_questions(questions))
    for miss in misses:
        print(f"{miss.intent:>18}: {miss.question}\n{'':>20}{miss.answer}")
    print(f"{questions}: {share:.1%} answered as intended")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL, sys.argv[2] if len(sys.argv) > 2 else "evaluation.json")
