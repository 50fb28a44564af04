"""Asks a trained guide questions, greedily, and counts the answers as intended.

`python packaging/builtin_model/evaluate.py [folder] [--questions FILE] [--earlier TURNS]` prints misses and share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from corpus import HERE, read_intents, read_questions
from tokenizer import ASSISTANT, END, PAD, USER
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

MODEL = HERE.parent.parent / "assets" / "builtin-model"
NEW_TOKENS = 90
BATCH = 64
SEED = 164


@dataclass(frozen=True)
class Miss:
    """A question answered with something other than its intent's answers."""

    intent: str
    question: str
    answer: str


@torch.inference_mode()
def reply(model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Answer conversations that end with a question, greedily, as one left-padded batch."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=pad)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    return [tokenizer.decode(row[width:], skip_special_tokens=True).strip() for row in out.tolist()]


def ask(question: str) -> str:
    """Format a question as the model reads it, up to the start of its answer."""
    return f"{USER}{question.strip()}{END}{ASSISTANT}"


def score(
    model: PreTrainedModel, tokenizer: Tokenizer, asked: dict[str, list[str]], earlier: int = 0
) -> tuple[float, list[Miss]]:
    """Return the share (0-1) of questions answered verbatim with an answer of their intent, and the misses.

    Each question follows `earlier` turns: other questions of the set, drawn at random, with intended answers.
    """
    answers = {intent.name: intent.answers for intent in read_intents()}
    pairs = [(name, question) for name, questions in asked.items() for question in questions]
    rng = Random(SEED)
    misses = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        before = [
            "".join(f"{ask(text)}{answers[name][0]}{END}" for name, text in rng.sample(pairs, earlier)) for _ in batch
        ]
        prompts = [turns + ask(question) for turns, (_, question) in zip(before, batch, strict=True)]
        for (name, question), got in zip(batch, reply(model, tokenizer, prompts), strict=True):
            if got not in answers[name]:
                misses.append(Miss(name, question, got))
    return 1 - len(misses) / len(pairs), misses


def main() -> None:
    """Print every miss and the share answered as intended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--questions", default="evaluation.json")
    parser.add_argument("--earlier", type=int, default=0)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.bfloat16).eval()
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    share, misses = score(model, tokenizer, read_questions(options.questions), options.earlier)
    for miss in misses:
        print(f"{miss.intent:>18}: {miss.question}\n{'':>20}{miss.answer}")
    print(f"{options.questions} after {options.earlier} earlier turns: {share:.1%} answered as intended")


if __name__ == "__main__":
    main()
